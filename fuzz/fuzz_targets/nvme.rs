//! The NVMe controller: registers, doorbells, commands with any fields, lists anywhere in memory, resets, checkpoints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::backend::disk::{Control, Disk, MemoryDisk};
use vmm_core::base::{Component, GuestAddress};
use vmm_core::testkit::{NVME_RAM, NVME_SHADOW, NvmeGuest};

const SECTORS: usize = 64;
const QUEUES: u16 = 2;
/// One input makes at most so many steps: longer ones find nothing new.
const STEPS: usize = 128;
/// Where lists are put and commands mostly point to.
const LISTS: u64 = 0x2_0000;

/// Admin opcodes, and I/O ones.
const ADMIN: &[u8] = &[0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x7c, 3];
const IO: &[u8] = &[0, 1, 2, 8, 9, 4];

fn disk() -> (Box<dyn Disk>, Control) {
    let (disk, control) = MemoryDisk::new(vec![0x5a; SECTORS * 512], false);
    (Box::new(disk), control)
}

/// An address that is mostly in a few pages of RAM.
fn address(choices: &mut Choices<'_>) -> u64 {
    match choices.u8() % 8 {
        0 => choices.u64(),
        1 => NVME_RAM - u64::from(choices.u8()) * 16,
        2 => u64::from(choices.u32()) % NVME_RAM,
        3 => LISTS + u64::from(choices.u8()) * 8,
        4 => NvmeGuest::queue_at(u16::from(choices.u8()) % 3).0,
        5 => NVME_SHADOW[usize::from(choices.u8() % 2)],
        _ => LISTS + 4096 * u64::from(choices.u8() % 16),
    }
}

fn command(choices: &mut Choices<'_>, queue: u16) -> [u32; 16] {
    let opcode = if choices.u8() % 16 == 0 {
        choices.u8()
    } else {
        choices.one_of(if queue == 0 { ADMIN } else { IO })
    };
    let namespace = choices.one_of(&[1, 1, 1, 1, 0, 2, u32::MAX]);
    let (first, second) = (address(choices), address(choices));
    let mut command = NvmeGuest::command(opcode, namespace, first, &[]);
    // PRPs, an SGL, or nonsense; rarely fused.
    command[0] |= choices.one_of(&[0, 0, 0, 1 << 14, 1 << 14, 2 << 14, 3 << 14, 1 << 8]);
    (command[8], command[9]) = (second as u32, (second >> 32) as u32);
    for word in &mut command[10..14] {
        *word = match choices.u8() % 4 {
            0 => choices.u32(),
            1 => u32::from(choices.u8()) << 16 | u32::from(choices.u8() % 4),
            _ => u32::from(choices.u8()),
        };
    }
    command
}

/// Entries of a list of pages, or descriptors, whose addresses are mostly good.
fn list(choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..choices.u8() % 8 {
        bytes.extend(address(choices).to_le_bytes());
        if choices.u8() % 2 == 0 {
            bytes.extend(choices.one_of(&[0, 1, 16, 32, 512, 4096, 24, u32::MAX]).to_le_bytes());
            bytes.extend([0, 0, 0, choices.one_of(&[0, 0, 0x20, 0x30, 0x10, 0xff])]);
        }
    }
    bytes
}

fn start(guest: &mut NvmeGuest) {
    guest.disable();
    guest.start(8);
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices::new(data);
    let (first, mut control) = disk();
    let mut guest = NvmeGuest::new(first, QUEUES);
    // Every completion is checked as long as the guest overwrites no queue.
    start(&mut guest);
    for _ in 0..STEPS {
        if !choices.any() {
            break;
        }
        match choices.u8() % 16 {
            0..=6 => {
                let queue = u16::from(choices.u8()) % (QUEUES + 1);
                let command = command(&mut choices, queue);
                if guest.put(queue, command).is_some() && choices.u8() % 4 != 0 {
                    guest.ring(queue);
                }
            }
            7 | 8 => {
                let at = LISTS + 4096 * u64::from(choices.u8() % 16) + 8 * u64::from(choices.u8()) * 2;
                guest.memory.write(GuestAddress(at), &list(&mut choices)).expect("an address in RAM");
            }
            9 => {
                let (at, len) = (address(&mut choices) % (NVME_RAM - 64), usize::from(choices.u8()) % 64);
                guest.memory.write(GuestAddress(at), choices.bytes(len)).expect("an address in RAM");
            }
            10 => {
                let offset = match choices.u8() % 4 {
                    0 => 0x1000 + 4 * u64::from(choices.u8() % 16),
                    1 => u64::from(choices.u16()) % 0x4000,
                    _ => 4 * u64::from(choices.u8() % 16),
                };
                let value = if choices.u8() % 2 == 0 { choices.u32() } else { u32::from(choices.u8()) };
                guest.write(offset, value);
                if choices.u8() % 2 == 0 {
                    guest.run();
                }
            }
            11 => control.hold(choices.u8() % 2 == 0),
            12 => {
                guest.nvme.pause();
                guest.nvme.resume();
                guest.run();
            }
            13 if choices.u8() % 4 == 0 => {
                let (twin, twins) = disk();
                guest.move_to(twin).expect("a state of its own");
                control = twins;
            }
            13 => {
                control.hold(false);
                guest.set_shadow_leniently();
            }
            14 => start(&mut guest),
            _ => {
                let offset = usize::from(choices.u8() % 0x60);
                guest.write_config(offset, choices.bytes(2));
                guest.remap();
            }
        }
        for queue in 0..=QUEUES {
            for _ in 0..64 {
                if guest.peek_leniently(queue).is_none() {
                    break;
                }
                guest.acknowledge(queue);
            }
        }
    }
    assert_eq!(control.bytes().len(), SECTORS * 512);
    // Whatever was done, a reset makes it work again.
    control.hold(false);
    start(&mut guest);
    assert_eq!(guest.ask(1, NvmeGuest::command(2, 1, LISTS, &[3, 0, 0])).status, 0);
    let mut read = [0; 512];
    guest.memory.read(GuestAddress(LISTS), &mut read).expect("an address in RAM");
    assert_eq!(read, control.bytes()[3 * 512..4 * 512]);
});
