//! A guest that ticks: a line a millisecond, and RAM that is in use and changes at a set rate. Whoever saves it, restores it or
//! forks it sees in its lines how long it was stopped (docs/probe.md).

use crate::dma::Dma;
use crate::machine::Machine;
use crate::{println, time};

const PAGE: usize = 4096;
/// RAM in use unless the command line says otherwise, MiB.
const USED_MIB: u64 = 16;
const TICK_MICROS: u64 = 1000;

/// Ticks until the machine is turned off.
pub fn run(machine: &Machine) -> ! {
    let used = machine.words.number("tickmib").unwrap_or(USED_MIB).max(1);
    let rate = machine.words.number("dirtymib").unwrap_or(0);
    let arena = Dma::new((used << 20) as usize);
    let pages = arena.len() / PAGE;
    for page in 0..pages {
        // No page is like another, or like zeroes.
        arena.write(page * PAGE, page as u64 + 1);
    }
    println!("tick: {} pages in use, {} MiB/s change", pages, rate);
    let (mut tick, mut written, mut next) = (0u64, 0u64, time::micros());
    loop {
        tick += 1;
        // After a stop it goes on at its rate, and makes up for nothing.
        let due = tick * rate * ((1 << 20) / PAGE as u64) / (1_000_000 / TICK_MICROS);
        while written < due {
            arena.write((written as usize % pages) * PAGE + 8, tick);
            written += 1;
        }
        println!("tick {tick}");
        let now = time::micros();
        next = (next + TICK_MICROS).max(now);
        time::sleep_micros(next - now);
    }
}
