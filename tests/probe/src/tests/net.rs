//! virtio-net (virtio 1.2 §5.1): an ARP request goes out, and with `netpeer=ADDRESS` its answer comes back.

use crate::dma::Dma;
use crate::drivers::virtio::{Device, Segment, kind};
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::text::Text;
use crate::{ensure, fail, time, trap};
use core::fmt::Write as _;

const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_STATUS: u64 = 1 << 16;
/// Header before each frame, with VERSION_1 always this long.
const HEADER_BYTES: usize = 12;
const FRAME_BYTES: usize = 60;
const BUFFER_BYTES: usize = HEADER_BYTES + 1514;
const RECEIVE_BUFFERS: u16 = 16;
const PEER_PATIENCE_MICROS: u64 = 5_000_000;
/// The probe's address when it asks for another.
const OWN_ADDRESS: [u8; 4] = [10, 0, 2, 15];
const DEFAULT_PEER: [u8; 4] = [10, 0, 2, 2];

/// The transmit queue takes a frame and interrupts; a peer, if one is named, answers.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    let function = machine.pci.virtio(kind::NET).nth(index).ok_or(Failure::Absent)?;
    let device = Device::open(function, FEATURE_MAC | FEATURE_STATUS)?;
    let config = device.config()?;
    ensure!(device.has(FEATURE_MAC), "the device has no address");
    let mac: [u8; 6] = core::array::from_fn(|byte| config.read8(byte as u64));
    ensure!(mac[0] & 1 == 0 && mac != [0; 6], "the address {mac:x?} is no unicast address");
    let mut receive = device.queue(0, RECEIVE_BUFFERS)?;
    let mut transmit = device.queue(1, 16)?;
    device.start()?;
    let buffers: [Dma; RECEIVE_BUFFERS as usize] = core::array::from_fn(|_| Dma::new(BUFFER_BYTES));
    // Single-descriptor chains are taken from the free list in order, so head n carries buffer n.
    for buffer in &buffers[..usize::from(receive.size)] {
        receive.push(&[Segment::write(buffer)]);
    }
    receive.notify();
    let peer = peer(machine)?;
    let frame = Dma::new(HEADER_BYTES + FRAME_BYTES);
    frame.put(HEADER_BYTES, &arp_request(mac, peer.unwrap_or(OWN_ADDRESS)));
    let before = trap::count(transmit.vector);
    let (header, body) = (frame.part(0, HEADER_BYTES), frame.part(HEADER_BYTES, FRAME_BYTES));
    transmit.request(&[Segment::read(&header), Segment::read(&body)])?;
    ensure!(transmit.interrupted(before), "no interrupt for the frame that was sent");
    let mut details = Text::new();
    // Text never fails.
    let _ = write!(details, "address");
    mac.iter().enumerate().for_each(|(n, byte)| _ = write!(details, "{}{byte:02x}", if n == 0 { ' ' } else { ':' }));
    if device.has(FEATURE_STATUS) {
        let _ = write!(details, ", link {}", if config.read16(6) & 1 == 1 { "up" } else { "down" });
    }
    if let Some(peer) = peer {
        let mut answered = false;
        let mut frames = 0;
        time::wait_for(PEER_PATIENCE_MICROS, || {
            while let Some((head, written)) = receive.pop() {
                let buffer = &buffers[usize::from(head)];
                frames += 1;
                answered |= is_arp_answer(&buffer.bytes()[..(written as usize).min(BUFFER_BYTES)], mac, peer);
                receive.push(&[Segment::write(buffer)]);
                receive.notify();
            }
            answered
        });
        ensure!(answered, "no answer to the ARP request for {peer:?} among {frames} frames");
        let _ = write!(details, ", {}.{}.{}.{} answered", peer[0], peer[1], peer[2], peer[3]);
    }
    device.reset()?;
    Ok(details)
}

/// Whom to ask: `netpeer=A.B.C.D`, or `netpeer` for the gateway of user-mode networks.
fn peer(machine: &Machine) -> Outcome<Option<[u8; 4]>> {
    let Some(word) = machine.words.value("netpeer") else {
        return Ok(machine.words.has("netpeer").then_some(DEFAULT_PEER));
    };
    let mut address = [0; 4];
    let mut parts = word.split('.');
    for byte in &mut address {
        match parts.next().and_then(|part| part.parse().ok()) {
            Some(value) => *byte = value,
            None => fail!("netpeer={word} is no address"),
        }
    }
    Ok(Some(address))
}

/// A broadcast question who has `target` (RFC 826), padded to the least size of a frame.
fn arp_request(mac: [u8; 6], target: [u8; 4]) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[0..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&OWN_ADDRESS);
    frame[38..42].copy_from_slice(&target);
    frame
}

fn is_arp_answer(buffer: &[u8], mac: [u8; 6], peer: [u8; 4]) -> bool {
    buffer.get(HEADER_BYTES..).is_some_and(|frame| {
        frame.len() >= 42
            && frame[0..6] == mac
            && frame[12..14] == [0x08, 0x06]
            && frame[20..22] == [0, 2]
            && frame[28..32] == peer
    })
}
