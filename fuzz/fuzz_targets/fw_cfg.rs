//! fw_cfg's registers and its DMA, with blocks and buffers anywhere.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::base::{GuestAddress, GuestMemory};
use vmm_core::devices::legacy::{FwCfg, FwCfgItems};
use vmm_core::hw::BusDevice;

const RAM: u64 = 1 << 20;
const FIXED: &[u8] = b"what the guest may not change";

fn device(memory: &GuestMemory) -> FwCfg {
    let mut items = FwCfgItems::default();
    items.item(5, vec![2, 0]);
    items.file("etc/fixed", FIXED.to_vec()).expect("a file");
    items.writable_file("etc/writable", vec![0; 16]).expect("a file");
    items.lazy_files(&[("etc/lazy", 8), ("etc/other", 8)], || Ok(vec![vec![1; 8], vec![2; 3]])).expect("files");
    FwCfg::new(memory.clone(), items, Arc::new(|_, _| ()))
}

fuzz_target!(|data: &[u8]| {
    let memory = GuestMemory::new(RAM).expect("guest RAM");
    let device = device(&memory);
    let mut choices = Choices::new(data);
    for _ in 0..128 {
        if !choices.any() {
            break;
        }
        match choices.u8() % 6 {
            0 => drop(device.write(0, &u16::from(choices.u8() % 0x30).to_le_bytes())),
            1 => device.read(1, &mut [0]),
            2 => {
                let offset = u64::from(choices.u8() % 12);
                let len = choices.one_of(&[1, 2, 4, 8]);
                device.read(offset, &mut vec![0; len]);
            }
            3 => drop(device.write(u64::from(choices.u8() % 12), choices.bytes(4))),
            _ => {
                // control: error, read, skip, select, write, and a key to select; then length and address.
                let control = u32::from(choices.u8() % 32) | u32::from(choices.u8() % 0x30) << 16;
                let len = choices.one_of(&[0, 1, 8, 29, 4096, u32::MAX]);
                let address = if choices.u8() % 4 == 0 { choices.u64() } else { u64::from(choices.u32()) % RAM };
                let block = [&control.to_be_bytes()[..], &len.to_be_bytes(), &address.to_be_bytes()].concat();
                let at = if choices.u8() % 8 == 0 { choices.u64() } else { u64::from(choices.u16()) & !7 };
                let in_ram = memory.write(GuestAddress(at), &block).is_ok();
                device.write(4, &((at >> 32) as u32).to_be_bytes());
                device.write(8, &(at as u32).to_be_bytes());
                // Done, or an error; unless the guest had the device write over the block itself.
                if in_ram && (address.saturating_add(u64::from(len)) <= at || address >= at + 16) {
                    let done: u32 = memory.read_obj(GuestAddress(at)).expect("a block in RAM");
                    assert!(u32::from_be(done) <= 1, "the block says {:#x}", u32::from_be(done));
                }
            }
        }
    }
    assert_eq!(device.contents("etc/fixed").as_deref(), Some(FIXED));
    assert_eq!(device.contents("etc/writable").map(|bytes| bytes.len()), Some(16));
});
