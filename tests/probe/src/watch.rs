//! A guest that notices: pages of RAM and blocks of the first virtio disk that change all the time, each with its number, a
//! counter and data that follow from both. RAM remembers every counter, so RAM and disk that are not of one moment, or a
//! page that is not what it was, are seen (docs/probe.md).

use crate::dma::Dma;
use crate::drivers::blk::{Disk, SECTOR, request};
use crate::drivers::virtio::{feature, kind};
use crate::machine::Machine;
use crate::random::XorShift;
use crate::report::{Failure, Outcome};
use crate::{ensure, power, println, time};

const PAGE: usize = 4096;
/// Bytes of RAM that are watched, in MiB, unless the command line says otherwise.
const RAM_MIB: u64 = 16;
/// Blocks of the disk that are watched, at most.
const BLOCKS: u64 = 2048;
/// Pages and blocks that change in a round.
const CHANGES: usize = 32;
/// How often a line says that all is well.
const LINE_MICROS: u64 = 300_000;

/// Watches until the machine is turned off. A page or block that is not what it should be ends it with a line.
pub fn run(machine: &Machine) -> ! {
    match watch(machine) {
        Ok(never) => match never {},
        Err(Failure::Failed(why)) => println!("watch: FAIL {why}"),
        Err(Failure::Absent) => println!("watch: FAIL a device is gone"),
    }
    power::off()
}

/// Things with a number that change: each has a counter of its own.
struct Watched {
    /// A u64 for each.
    counters: Dma,
    count: usize,
}

impl Watched {
    fn new(count: usize) -> Watched {
        Watched { counters: Dma::new((count * 8).max(8)), count }
    }

    fn counter(&self, index: usize) -> u64 {
        self.counters.read(index * 8)
    }

    fn set(&self, index: usize, counter: u64) {
        self.counters.write(index * 8, counter);
    }
}

/// What page or block `index` holds when its counter is this.
fn fill(memory: &Dma, salt: u64, index: usize, counter: u64) {
    let mut data = XorShift::new((salt << 56 | (index as u64) << 32 | counter) + 1);
    for word in 0..PAGE / 8 {
        memory.write(word * 8, data.next());
    }
    memory.write(0, index as u64);
    memory.write(8, counter);
}

fn check(memory: &Dma, expected: &Dma, what: &str, index: usize, counter: u64) -> Outcome<()> {
    let found: [u64; 2] = memory.read(0);
    ensure!(
        memory.bytes() == expected.bytes(),
        "{what} {index} says number {} and counter {}, not {counter}",
        found[0],
        found[1]
    );
    Ok(())
}

const OF_PAGES: u64 = 1;
const OF_BLOCKS: u64 = 2;

fn watch(machine: &Machine) -> Outcome<core::convert::Infallible> {
    let mib = machine.words.number("watchmib").unwrap_or(RAM_MIB);
    let bytes = machine.words.number("watchkib").map_or(mib << 20, |kib| kib.max(4) << 10);
    let arena = Dma::new(bytes as usize);
    let pages = Watched::new(arena.len() / PAGE);
    let mut disk = match machine.pci.virtio(kind::BLOCK).next() {
        Some(function) => Some(Disk::open(function, feature::EVENT_INDEX)?),
        None => None,
    };
    let most = machine.words.number("watchblocks").unwrap_or(BLOCKS).max(1);
    let per_block = (PAGE / SECTOR) as u64;
    let room = disk.as_ref().map_or(0, |disk| (disk.capacity / per_block).min(most)) as usize;
    let blocks = Watched::new(room);
    let (expected, block) = (Dma::new(PAGE), Dma::new(PAGE));
    let page = |index: usize| arena.part(index * PAGE, PAGE);

    for index in 0..pages.count {
        fill(&page(index), OF_PAGES, index, 0);
    }
    if let Some(disk) = &mut disk {
        for index in 0..blocks.count {
            fill(&block, OF_BLOCKS, index, 0);
            disk.expect(request::OUT, index as u64 * per_block, &[block])?;
        }
    }
    println!("watch: {} pages, {} blocks", pages.count, blocks.count);
    let mut random = XorShift::new(time::micros() | 1);
    let (mut round, mut said) = (0u64, time::micros());
    loop {
        round += 1;
        for _ in 0..CHANGES {
            let index = (random.next() % pages.count as u64) as usize;
            fill(&expected, OF_PAGES, index, pages.counter(index));
            check(&page(index), &expected, "page", index, pages.counter(index))?;
            fill(&page(index), OF_PAGES, index, round);
            pages.set(index, round);
        }
        if let Some(disk) = &mut disk {
            let index = (random.next() % blocks.count as u64) as usize;
            disk.expect(request::IN, index as u64 * per_block, &[block])?;
            fill(&expected, OF_BLOCKS, index, blocks.counter(index));
            check(&block, &expected, "block", index, blocks.counter(index))?;
            fill(&block, OF_BLOCKS, index, round);
            disk.expect(request::OUT, index as u64 * per_block, &[block])?;
            blocks.set(index, round);
        }
        if time::micros().wrapping_sub(said) < LINE_MICROS {
            continue;
        }
        for index in 0..pages.count {
            fill(&expected, OF_PAGES, index, pages.counter(index));
            check(&page(index), &expected, "page", index, pages.counter(index))?;
        }
        if let Some(disk) = &mut disk {
            for index in 0..blocks.count {
                disk.expect(request::IN, index as u64 * per_block, &[block])?;
                fill(&expected, OF_BLOCKS, index, blocks.counter(index));
                check(&block, &expected, "block", index, blocks.counter(index))?;
            }
        }
        println!("watch: round {round} holds");
        said = time::micros();
    }
}
