//! virtio-gpu with a screen behind it: commands of any content, and a driver that ignores all rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::{Choices, honest_driver, hostile_driver};
use vmm_core::backend::display::{Mode, Screen};
use vmm_core::backend::monitor::Monitor;
use vmm_core::devices::virtio_gpu::Gpu;

/// The 2D and cursor commands (virtio 1.2 §5.7.6.7), and two that do not exist here.
const KINDS: &[u32] =
    &[0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108, 0x109, 0x10a, 0x300, 0x301, 0x1fe, 0x400];

fn gpu() -> Gpu {
    let screen = Screen::new(|| ());
    Gpu::new(Monitor::new(screen.sink(), Mode { width: 640, height: 480 }).expect("a monitor"))
}

/// A header, then words that are mostly small, or guest addresses.
fn request(choices: &mut Choices<'_>, memory: &[u64]) -> (usize, Vec<Vec<u8>>, Vec<u32>) {
    let kind = choices.one_of(KINDS);
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(u32::from(choices.u8() % 2).to_le_bytes());
    bytes.extend([0; 16]);
    for _ in 0..choices.u8() % 24 {
        match choices.u8() % 8 {
            0 => bytes.extend(choices.u32().to_le_bytes()),
            1 => bytes.extend(choices.one_of(memory).to_le_bytes()),
            2 => bytes.extend(choices.address().to_le_bytes()),
            3 => bytes.extend(choices.one_of(&[1u32, 2, 3, 4, 67, 68, 121, 134]).to_le_bytes()),
            4 => bytes.extend(u32::from(choices.u16()).to_le_bytes()),
            _ => bytes.extend(u32::from(choices.u8() % 70).to_le_bytes()),
        }
    }
    let queue = usize::from(kind >= 0x300 && choices.u8() % 8 != 0);
    (queue, vec![bytes], vec![choices.one_of(&[2048, 24, 8])])
}

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((byte, rest)) if byte % 4 == 0 => hostile_driver(gpu(), gpu, rest),
    Some((_, rest)) => honest_driver(gpu(), rest, request, |_, answer| {
        let Some(kind) = answer.first_chunk() else { return };
        let kind = u32::from_le_bytes(*kind);
        assert!((0x1100..0x1110).contains(&kind) || (0x1200..0x1210).contains(&kind), "an answer of type {kind:#x}");
    }),
    None => {}
});
