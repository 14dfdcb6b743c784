//! Everything the probe knows of its machine before it tests anything.

use crate::boot::{Handover, Words};
use crate::drivers::pci::Bus;
use crate::drivers::{fw_cfg, lapic};
use crate::memory::{Map, Range};
use crate::time::Reference;
use crate::{dma, time};

/// The machine.
pub struct Machine {
    /// What to do.
    pub words: Words,
    /// Where RAM is.
    pub map: Map,
    /// Address of the ACPI root pointer, 0 if the loader gave none.
    pub rsdp: u64,
    /// What the TSC was measured with.
    pub reference: Reference,
    /// The functions of PCI bus 0; none on a machine without PCI.
    pub pci: Bus,
    /// Whether fw_cfg is there.
    pub fw_cfg: bool,
    /// Number of CPUs: by fw_cfg, by ACPI, or one.
    pub cpus: usize,
}

impl Machine {
    /// Whether tests may write to disks, be it to put back what was there: not in the demo, whose disks are a person's.
    pub fn may_write(&self) -> bool {
        !self.words.has("demo") || self.words.value("blkscratch").is_some()
    }

    /// Reads the loader's handover and looks around.
    pub fn discover(start_info: u32) -> Machine {
        let Handover { rsdp, mut map, words } = Handover::read(start_info);
        let fw_cfg = fw_cfg::present();
        if map.ranges().is_empty() && fw_cfg {
            map = e820();
        }
        dma::init(map.end_of_low_ram());
        let reference = time::calibrate();
        lapic::enable();
        let cpus = cpu_count(fw_cfg, rsdp);
        Machine { words, map, rsdp, reference, pci: Bus::scan(), fw_cfg, cpus }
    }
}

/// The memory map of fw_cfg's `etc/e820`: entries of base, length, type.
pub fn e820() -> Map {
    let mut map = Map::new();
    if let Some(file) = fw_cfg::find("etc/e820") {
        let mut bytes = [0; 20 * 64];
        let length = (file.size as usize).min(bytes.len());
        fw_cfg::read(file.key, &mut bytes[..length]);
        for entry in bytes[..length].as_chunks::<20>().0 {
            let number = |at: usize| u64::from_le_bytes(core::array::from_fn(|index| entry[at + index]));
            let kind = u32::from_le_bytes(core::array::from_fn(|index| entry[16 + index]));
            map.push(Range { base: number(0), length: number(8), kind });
        }
    }
    map
}

fn cpu_count(fw_cfg: bool, rsdp: u64) -> usize {
    let mut count = [0; 2];
    if fw_cfg {
        fw_cfg::read(fw_cfg::KEY_CPUS, &mut count);
    }
    match u16::from_le_bytes(count) {
        0 => crate::acpi::Tables::find(rsdp).and_then(|tables| tables.madt()).map_or(1, |madt| madt.cpus),
        count => usize::from(count),
    }
}
