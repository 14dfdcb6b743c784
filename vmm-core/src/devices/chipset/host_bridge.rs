//! The host bridge 8086:29c0 (Intel 3 Series Express Chipset, "MCH", §5.1): of its registers, PCIEXBAR moves the
//! memory-mapped configuration space, and those of system management RAM hide it where the machine has that mode; the rest is
//! remembered and does nothing.

use std::sync::{Arc, Mutex};

use super::{SUBSYSTEM, lock, touches};
use crate::base::{Component, SavedState, Section, StateError};
use crate::hw::{Action, Bus, BusDevice, SystemManagement, TSEG_EXTENDED_MIB, TSEG_SIZES};
use crate::pci::{ConfigSpace, ConfigState, Identity, PciDevice};

/// QEMU's extended TSEG size, u16, MiB. Without system management mode it is remembered only, so that firmware reads its own
/// query back and knows there is none.
const EXT_TSEG: usize = 0x50;
/// PCI Express register range base address, u64 (§5.1.21): bit 0 enables, bits 2:1 are the length.
const PCIEXBAR: usize = 0x60;
/// Programmable attribute maps 0 to 6 (§5.1.22): remembered only, 0xc0000 to 0xfffff is always RAM.
const PAM: usize = 0x90;
/// SMRAM control, u8 (§5.1.29). RAM in the VGA's window is not offered.
const SMRAM: usize = 0x9d;
const GLOBAL_ENABLE: u8 = 1 << 3;
/// These two registers stay as they are until reset.
const LOCK: u8 = 1 << 4;
/// Extended SMRAM control, u8 (§5.1.30): TSEG, the end of low RAM, is enabled; its size.
const TSEG_ENABLE: u8 = 1 << 0;
const TSEG_SIZE_SHIFT: u8 = 1;

/// GBSM, BGSM and TSEGMB, u32 (§5.1.32 to 34): where graphics memory, its table and TSEG begin, bits 31:20. Remembered for
/// firmware, which reads the last one back; TSEG ends where low RAM does.
const BASES: usize = 0xa4;

const ENABLE: u64 = 1;
/// Address bits 35:26; the guest leaves the low ones 0 where its length is larger than 64 MiB.
const BASE: u64 = 0xf_fc00_0000;
const MIB: u64 = 1 << 20;

/// The two registers of system management RAM.
fn smram(config: &ConfigSpace) -> [u8; 2] {
    let [_, control, extended, _] = config.dword(SMRAM & !3).to_le_bytes();
    [control, extended]
}

/// The function at 00:00.0.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
    memory: Arc<Bus>,
    ecam: Arc<dyn BusDevice>,
    management: Option<Arc<dyn SystemManagement>>,
    /// Where the configuration space is on the bus now: start and length.
    mapped: Mutex<Option<(u64, u64)>>,
}

/// What a checkpoint keeps of the host bridge.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct HostBridgeState {
    config: ConfigState,
}

impl SavedState for HostBridgeState {
    const VERSION: u32 = 1;
}

impl HostBridge {
    /// Puts `ecam` on `memory` wherever the guest says.
    pub fn new(memory: Arc<Bus>, ecam: Arc<dyn BusDevice>) -> HostBridge {
        let identity = Identity { vendor: 0x8086, device: 0x29c0, revision: 0, class: [6, 0, 0], subsystem: SUBSYSTEM };
        let mut config = ConfigSpace::new(identity);
        config.allow(EXT_TSEG, &[0xff, 0xff]);
        config.set(PCIEXBAR, &0xb000_0000u64.to_le_bytes());
        config.allow(PCIEXBAR, &(BASE | 7).to_le_bytes());
        config.allow(PAM, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        config.set(SMRAM, &[0x02, 0x38]);
        config.allow(SMRAM, &[0x78, 0x87]);
        HostBridge { config: Mutex::new(config), memory, ecam, management: None, mapped: Mutex::new(None) }
    }

    /// The same in a machine with system management mode.
    pub fn with_smm(mut self, management: Arc<dyn SystemManagement>) -> HostBridge {
        {
            let mut config = lock(&self.config);
            config.allow(EXT_TSEG, &[0, 0]);
            config.set(EXT_TSEG, &TSEG_EXTENDED_MIB.to_le_bytes());
            config.allow(BASES, &[0xfff0_0000u32.to_le_bytes(); 3].concat());
        }
        self.management = Some(management);
        self
    }

    /// Hides what RAM the registers say. An action where that could not be done.
    fn hide_ram(&self) -> Option<Action> {
        let management = self.management.as_ref()?;
        // Held until it is done: what is hidden is what the registers say, whichever CPU writes them meanwhile.
        let config = lock(&self.config);
        let [control, extended] = smram(&config);
        let len = match control & GLOBAL_ENABLE != 0 && extended & TSEG_ENABLE != 0 {
            true => TSEG_SIZES[usize::from(extended >> TSEG_SIZE_SHIFT & 3)],
            false => 0,
        };
        // A firmware whose RAM everyone sees must not go on.
        management.hide_ram(len).err().map(|_| Action::PowerOff)
    }

    /// Where the guest put the configuration space: start and length; `None` while it is off.
    pub fn ecam_range(&self) -> Option<(u64, u64)> {
        let config = lock(&self.config);
        let value = u64::from(config.dword(PCIEXBAR)) | u64::from(config.dword(PCIEXBAR + 4)) << 32;
        let len = match value >> 1 & 3 {
            0 => 256 * MIB,
            1 => 128 * MIB,
            2 => 64 * MIB,
            _ => return None,
        };
        (value & ENABLE != 0).then_some((value & BASE & !(len - 1), len))
    }

    /// Moves the configuration space to where the register says.
    fn remap(&self) {
        let wanted = self.ecam_range();
        let mut mapped = lock(&self.mapped);
        if *mapped == wanted {
            return;
        }
        if let Some((start, _)) = mapped.take() {
            self.memory.remove(start);
        }
        // Over another device it is seen by nobody, until the guest moves it on.
        *mapped = wanted.filter(|&(start, len)| self.memory.insert(start, len, self.ecam.clone()));
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Option<Action> {
        {
            let mut config = lock(&self.config);
            let old = smram(&config);
            config.write(offset, data);
            if self.management.is_some() && old[0] & LOCK != 0 {
                config.write(SMRAM, &old);
            }
        }
        if touches(offset, data.len(), PCIEXBAR, PCIEXBAR + 8) {
            self.remap();
        }
        if touches(offset, data.len(), SMRAM, SMRAM + 2) { self.hide_ram() } else { None }
    }

    fn read_bar(&self, _: usize, _: u64, _: &mut [u8]) {}

    fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Option<Action> {
        None
    }
}

impl Component for HostBridge {
    fn name(&self) -> String {
        "host-bridge".into()
    }

    fn reset(&self) {
        lock(&self.config).reset();
        self.remap();
        // What was shown once is shown again.
        let _ = self.hide_ram();
    }

    fn save(&self) -> Result<Section, StateError> {
        Section::encode(&self.name(), &HostBridgeState { config: lock(&self.config).save() })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let HostBridgeState { config } = section.decode()?;
        lock(&self.config).restore(&config)?;
        self.remap();
        match self.hide_ram() {
            None => Ok(()),
            Some(_) => Err(StateError::invalid(self.name(), "the firmware's memory can't be hidden")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{PciAddress, PciRoot};
    use crate::testkit::FakeManagement;

    fn bridge() -> (Arc<PciRoot>, Arc<Bus>, Arc<HostBridge>) {
        let memory = Arc::new(Bus::default());
        let root = PciRoot::new(memory.clone(), Arc::default());
        let bridge = Arc::new(HostBridge::new(memory.clone(), root.ecam()));
        root.add(PciAddress::new(0, 0), bridge.clone());
        (root, memory, bridge)
    }

    fn vendor_at(memory: &Bus, address: u64) -> u16 {
        let mut bytes = [0; 2];
        memory.read(address, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    #[test]
    fn configuration_space_appears_where_the_firmware_puts_it() {
        let (root, memory, bridge) = bridge();
        assert_eq!(vendor_at(&memory, 0xb000_0000), 0xffff);
        // As SeaBIOS and OVMF do: off, high half, low half with enable.
        for (offset, value) in [(0x60, 0u32), (0x64, 0), (0x60, 0xb000_0001)] {
            root.write_config(0, offset, &value.to_le_bytes());
        }
        assert_eq!(vendor_at(&memory, 0xb000_0000), 0x8086);
        // Through the window itself, to another place.
        memory.write(0xb000_0060, &0xe000_0001u32.to_le_bytes());
        assert_eq!((vendor_at(&memory, 0xb000_0000), vendor_at(&memory, 0xe000_0000)), (0xffff, 0x8086));
        root.write_config(0, 0x60, &[3 << 1 | 1]);
        assert_eq!(bridge.ecam_range(), None);
        assert_eq!(vendor_at(&memory, 0xe000_0000), 0xffff);
        root.write_config(0, 0x60, &0xe400_0005u32.to_le_bytes());
        assert_eq!(bridge.ecam_range(), Some((0xe400_0000, 64 * MIB)));
        bridge.reset();
        assert_eq!((bridge.ecam_range(), vendor_at(&memory, 0xe400_0000)), (None, 0xffff));
    }

    #[test]
    fn pam_and_smram_are_remembered_within_their_bits() {
        let (root, _, bridge) = bridge();
        root.write_config(0, 0x90, &[0xff; 8]);
        let mut bytes = [0; 8];
        bridge.read_config(0x90, &mut bytes);
        assert_eq!(bytes, [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0]);
        root.write_config(0, 0x9d, &[0, 0]);
        bridge.read_config(0x9c, &mut bytes[..3]);
        assert_eq!(bytes[..3], [0, 0x02, 0x38]);
    }

    #[test]
    fn system_management_ram_is_hidden_as_far_as_the_registers_say_and_stays_so_once_it_is_locked() {
        let management = Arc::new(FakeManagement::default());
        let with_smm = || {
            let memory = Arc::new(Bus::default());
            let root = PciRoot::new(memory.clone(), Arc::default());
            let bridge = Arc::new(HostBridge::new(memory, root.ecam()).with_smm(management.clone()));
            root.add(PciAddress::new(0, 0), bridge.clone());
            (root, bridge)
        };
        let (root, bridge) = with_smm();
        let mib = || management.hidden() >> 20;
        root.write_config(0, 0x50, &[0xff, 0xff]);
        let mut size = [0; 2];
        bridge.read_config(0x50, &mut size);
        assert_eq!(size, [16, 0]);
        let mut base = [0; 4];
        root.write_config(0, 0xac, &0x2f0f_ffffu32.to_le_bytes());
        bridge.read_config(0xac, &mut base);
        assert_eq!(u32::from_le_bytes(base), 0x2f00_0000);
        root.write_config(0, 0x9e, &[7]);
        assert_eq!(mib(), 0, "not enabled as a whole");
        root.write_config(0, 0x9d, &[GLOBAL_ENABLE]);
        assert_eq!(mib(), 16);
        for (size, expect) in [(0, 1), (1, 2), (2, 8)] {
            root.write_config(0, 0x9e, &[size << 1 | 1]);
            assert_eq!(mib(), expect);
        }
        root.write_config(0, 0x9e, &[4]);
        assert_eq!(mib(), 0);
        root.write_config(0, 0x9d, &[GLOBAL_ENABLE | LOCK, 5]);
        for (offset, bytes) in [(0x9d, &[0, 0][..]), (0x9d, &[GLOBAL_ENABLE]), (0x9e, &[0]), (0x9c, &[0; 4])] {
            root.write_config(0, offset, bytes);
            assert_eq!((mib(), smram(&lock(&bridge.config))[0]), (8, 2 | GLOBAL_ENABLE | LOCK), "{offset:#x}");
        }
        let section = bridge.save().unwrap();
        bridge.reset();
        assert_eq!(mib(), 0);
        let (root, fresh) = with_smm();
        fresh.restore(&section).unwrap();
        assert_eq!((mib(), fresh.save().unwrap()), (8, section));
        root.write_config(0, 0x9e, &[0]);
        assert_eq!(mib(), 8);
    }

    #[test]
    fn a_restored_bridge_shows_the_window_again() {
        let (root, _, saved) = bridge();
        root.write_config(0, 0x60, &0xb000_0001u32.to_le_bytes());
        let section = saved.save().unwrap();
        let (_root, memory, fresh) = bridge();
        fresh.restore(&section).unwrap();
        assert_eq!(vendor_at(&memory, 0xb000_0000), 0x8086);
        assert_eq!(fresh.save().unwrap(), section);
    }

    #[test]
    fn no_access_to_configuration_space_panics() {
        let (root, memory, _) = bridge();
        for offset in 0..0x110 {
            for len in [1, 2, 3, 4, 8] {
                root.write_config(0, offset, &vec![0xff; len]);
                root.read_config(0, offset, &mut vec![0; len]);
            }
        }
        assert_eq!(vendor_at(&memory, 0xf_fc00_0000), 0xffff);
    }
}
