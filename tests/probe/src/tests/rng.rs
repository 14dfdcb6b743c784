//! virtio-rng (virtio 1.2 §5.4).

use crate::dma::Dma;
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::drivers::virtio::{Device, Segment, kind};
use crate::{ensure, text, trap};

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
    device.reset()?;
    Ok(text!("{BYTES} bytes twice, {interrupts} interrupts"))
}
