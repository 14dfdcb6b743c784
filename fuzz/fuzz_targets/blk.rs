//! virtio-blk on a disk in memory: requests with any header and any cut, and a driver that ignores all rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::{Choices, honest_driver, hostile_driver};
use vmm_core::backend::disk::MemoryDisk;
use vmm_core::devices::virtio_blk::Blk;

const SIZE: usize = 64 * 512;
/// IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, and one that does not exist (virtio 1.2 §5.2.6).
const KINDS: &[u32] = &[0, 1, 4, 8, 11, 13, 99];

fn request(choices: &mut Choices<'_>) -> (usize, Vec<Vec<u8>>, Vec<u32>) {
    let kind = choices.one_of(KINDS);
    let sector = if choices.u8() % 8 == 0 { choices.u64() } else { u64::from(choices.u8()) % 80 };
    let mut header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    if matches!(kind, 11 | 13) {
        // One range: sector, count, flags.
        header.extend(u64::from(choices.u8()).to_le_bytes());
        header.extend(choices.one_of(&[0, 1, 8, 64, u32::MAX]).to_le_bytes());
        header.extend(u32::from(choices.u8() % 4).to_le_bytes());
    }
    let length = usize::from(choices.u16() % 2048);
    let mut readable = vec![header, choices.bytes(length).to_vec()];
    // Whole sectors, mostly: others are refused at once.
    if choices.u8() % 4 != 0 {
        let whole = readable[1].len().next_multiple_of(512);
        readable[1].resize(whole, 0xa5);
    }
    readable.retain(|part| !part.is_empty());
    let room = choices.one_of(&[0, 20, 512, 1024, 4096, 511]);
    let writable = if room == 0 { vec![1] } else { vec![room, 1] };
    (0, readable, writable)
}

fuzz_target!(|data: &[u8]| {
    let (disk, control) = MemoryDisk::new(vec![0x5a; SIZE], data.first().is_some_and(|byte| byte % 16 == 1));
    let mut disk = Some(disk);
    // A device that restores a checkpoint gets a disk of its own.
    let make = |disk: Option<MemoryDisk>| {
        Blk::new(Box::new(disk.unwrap_or_else(|| MemoryDisk::new(vec![0x5a; SIZE], false).0)), "fuzz")
    };
    match data.split_first() {
        Some((byte, rest)) if byte % 2 == 0 => hostile_driver(make(disk.take()), || make(None), rest),
        Some((_, rest)) => honest_driver(
            make(disk.take()),
            rest,
            |choices, _| request(choices),
            |_, answer| assert!(answer.last().is_some_and(|status| *status <= 2), "a request without its status"),
        ),
        None => {}
    }
    assert_eq!(control.bytes().len(), SIZE);
});
