//! virtio-rng (virtio 1.2 §5.4).

use crate::dma::Dma;
use crate::drivers::pci::Msix;
use crate::drivers::virtio::{Device, Queue, Segment, kind};
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::{ensure, text, time, trap};

const BYTES: usize = 64;

/// Two reads give different bytes that are not all zero, and interrupts for both.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::ENTROPY).nth(index).ok_or(Failure::Absent)?;
    let device = Device::open(function, 0)?;
    let mut queue = device.queue(0, 8)?;
    device.start()?;
    let [first, second] = [Dma::new(BYTES), Dma::new(BYTES)];
    let mut interrupts = 0;
    for buffer in [&first, &second] {
        let before = trap::count(queue.vector);
        let written = queue.request(&[Segment::write(buffer)])? as usize;
        ensure!(written > 0, "the device wrote nothing");
        ensure!(buffer.bytes()[..written].iter().any(|&byte| byte != 0), "the device wrote {written} zeros");
        ensure!(queue.interrupted(before), "no interrupt");
        interrupts += 1;
    }
    ensure!(first.bytes() != second.bytes(), "two reads gave the same bytes");
    if let Some((msix, entry)) = device.msix(queue.index) {
        masked(&mut queue, &msix, entry, &first)?;
        interrupts += 1;
    }
    device.reset()?;
    Ok(text!("{BYTES} bytes twice, {interrupts} interrupts, one of them masked for a while"))
}

/// A masked MSI-X entry holds its interrupt back as pending, and sends it when the mask goes.
fn masked(queue: &mut Queue, msix: &Msix, entry: u16, buffer: &Dma) -> Outcome<()> {
    const PENDING_MICROS: u64 = 5_000_000;
    msix.mask(entry, true);
    let before = trap::count(queue.vector);
    queue.request(&[Segment::write(buffer)])?;
    let pending = time::wait_for(PENDING_MICROS, || msix.pending(entry));
    let early = trap::count(queue.vector) != before;
    msix.mask(entry, false);
    ensure!(!early, "an interrupt came through a masked MSI-X entry");
    ensure!(pending, "a masked MSI-X entry shows no pending interrupt");
    ensure!(queue.interrupted(before), "the pending interrupt does not come when its mask goes");
    Ok(())
}
