//! virtio-balloon (virtio 1.2 §5.5): memory that the host is given reads as zeroes, and its neighbours stay.

use crate::dma::Dma;
use crate::drivers::virtio::{Device, Queue, Segment, kind};
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::{ensure, println, text};

/// Features: free page reporting, and taking memory back without asking.
const REPORTING: u64 = 1 << 5;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// Reports are of this size, as the smallest of Linux.
const PIECE: usize = 2 * MIB;
const PIECES_AT_ONCE: usize = 32;
const PATTERN: u8 = 0xa5;

/// Inflates by some pages and takes them back; fills `balloonmib=N` (4) MiB and reports them as free.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::BALLOON).nth(index).ok_or(Failure::Absent)?;
    let device = Device::open(function, REPORTING | DEFLATE_ON_OOM)?;
    ensure!(device.has(REPORTING), "no free page reporting");
    // Without a statistics queue and free page hints, Linux finds the reporting queue in third place.
    let [mut inflate, mut deflate, mut report] = [device.queue(0, 8)?, device.queue(1, 8)?, device.queue(2, 64)?];
    device.start()?;
    let megabytes = machine.words.number("balloonmib").unwrap_or(4) as usize;
    pages(&mut inflate, &mut deflate)?;
    free_memory(&mut report, megabytes * MIB)?;
    device.reset()?;
    println!("balloon reported: {megabytes} MiB");
    Ok(text!("{megabytes} MiB reported free, read as zeroes"))
}

fn is(memory: &Dma, page: usize, byte: u8) -> bool {
    memory.part(page * PAGE, PAGE).bytes().iter().all(|&found| found == byte)
}

fn pages(inflate: &mut Queue, deflate: &mut Queue) -> Outcome<()> {
    let (memory, numbers) = (Dma::new(8 * PAGE), Dma::new(3 * 4));
    memory.fill(PATTERN);
    for (at, page) in [2, 5, 4].into_iter().enumerate() {
        numbers.write(at * 4, (memory.address() / PAGE as u64) as u32 + page);
    }
    inflate.request(&[Segment::read(&numbers)])?;
    for page in 0..8 {
        let given = matches!(page, 2 | 4 | 5);
        ensure!(is(&memory, page, if given { 0 } else { PATTERN }), "page {page} is wrong after inflating");
    }
    deflate.request(&[Segment::read(&numbers)])?;
    memory.fill(PATTERN);
    ensure!((0..8).all(|page| is(&memory, page, PATTERN)), "pages taken back do not keep what is written");
    Ok(())
}

fn free_memory(report: &mut Queue, bytes: usize) -> Outcome<()> {
    let memory = Dma::new(bytes + PAGE);
    memory.fill(PATTERN);
    for start in (0..bytes).step_by(PIECE * PIECES_AT_ONCE) {
        let mut pieces = [Segment::write(&memory.part(0, PAGE)); PIECES_AT_ONCE];
        let mut count = 0;
        for at in (start..bytes).step_by(PIECE).take(PIECES_AT_ONCE) {
            pieces[count] = Segment::write(&memory.part(at, PIECE.min(bytes - at)));
            count += 1;
        }
        report.request(&pieces[..count])?;
    }
    // A look takes the page back: one in each MiB is enough.
    for page in (0..bytes / PAGE).step_by(MIB / PAGE) {
        ensure!(is(&memory, page, 0), "page {page} that was reported free still has its content");
    }
    ensure!(is(&memory, bytes / PAGE, PATTERN), "the page behind what was reported free is lost");
    Ok(())
}
