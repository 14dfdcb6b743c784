//! The flash chip with UEFI's variables: any accesses, pauses, resets and checkpoints, against what its commands mean.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::backend::nvram::Nvram;
use vmm_core::base::{Component, InlineExecutor};
use vmm_core::devices::legacy::Pflash;
use vmm_core::hw::BusDevice;
use vmm_core::testkit::FakeSlots;

const BASE: u64 = 0xffc0_0000;
const SIZE: usize = 3 * 4096;

fn chip(slots: &FakeSlots) -> Pflash {
    let nvram = Nvram::volatile(&[0xa5; SIZE]).expect("memory");
    let executor = Arc::new(InlineExecutor::new().expect("an executor"));
    Pflash::new(BASE, nvram, Arc::new(slots.clone()), executor, Arc::new(|_, why| panic!("{why}"))).expect("a chip")
}

fuzz_target!(|data: &[u8]| {
    let mut slots = FakeSlots::default();
    let mut flash = chip(&slots);
    flash.resume();
    // What the commands mean: the array, and the command that waits for its second byte (or 0x70: the status is shown).
    let (mut array, mut waiting, mut status) = (vec![0xa5; SIZE], 0xff, 0x80u8);
    let mut choices = Choices::new(data);
    for _ in 0..256 {
        if !choices.any() {
            break;
        }
        let offset = usize::from(choices.u16()) % SIZE;
        match choices.u8() % 16 {
            0 => {
                flash.pause();
                flash.reset();
                flash.resume();
                (waiting, status) = (0xff, 0x80);
            }
            1 => {
                flash.pause();
                let section = flash.save().expect("a state");
                slots = FakeSlots::default();
                flash = chip(&slots);
                flash.restore(&section).expect("the state of a chip of this size");
                assert_eq!(flash.save().expect("a state"), section);
                flash.resume();
            }
            2 => {
                // Any size, also over the end: of commands only the first byte counts, and nothing is changed.
                if waiting == 0xff || waiting == 0x70 {
                    flash.write(offset as u64, &[0xff, 0x10, 0x20, 0xd0, 0x70, 0x40, 0x50, 0x90]);
                    waiting = 0xff;
                }
                flash.read(offset as u64, &mut [0; 8]);
            }
            _ => {
                let byte = match choices.u8() {
                    half @ 0..128 => [0x10, 0x20, 0xd0, 0x70, 0x50, 0xff, 0x40, 0x90][usize::from(half % 8)],
                    other => other,
                };
                assert_eq!(flash.write(offset as u64, &[byte]), None);
                match waiting {
                    0x10 => (array[offset], waiting, status) = (byte, 0xff, 0x80),
                    0x20 => {
                        status = if byte == 0xd0 { 0x80 } else { 0xb0 };
                        if byte == 0xd0 {
                            array[offset / 4096 * 4096..][..4096].fill(0xff);
                        }
                        waiting = 0xff;
                    }
                    _ => {
                        waiting = match byte {
                            0x10 | 0x40 => 0x10,
                            0x20 | 0x70 => byte,
                            _ => 0xff,
                        };
                        if byte == 0x50 {
                            status = 0;
                        }
                    }
                }
            }
        }
        let mut seen = [0];
        let shown = slots.read(BASE + offset as u64, &mut seen);
        assert_eq!(shown, waiting != 0x70);
        if !shown {
            flash.read(offset as u64, &mut seen);
        }
        assert_eq!(seen[0], if waiting == 0x70 { status } else { array[offset] });
    }
});
