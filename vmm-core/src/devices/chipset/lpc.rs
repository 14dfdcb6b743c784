//! The LPC bridge 8086:2918 (Intel ICH9 §13.1): it places the power management block, and routes PCI interrupts to
//! the PIC. The rest of its registers are remembered and do nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::pirq::{OFF, Pirq};
use super::{SUBSYSTEM, lock, touches};
use crate::base::{Component, SavedState, Section, StateError};
use crate::hw::{Action, Bus, BusDevice};
use crate::pci::{ConfigSpace, ConfigState, Identity, PciDevice, reg};

/// ACPI base address (§13.1.10): bits 15:7, bit 0 says that it is port I/O.
const PMBASE: usize = 0x40;
/// ACPI control, u8 (§13.1.11): bit 7 shows the block at PMBASE. The SCI is IRQ 9 and stays there.
const ACPI_CNTL: usize = 0x44;
const ACPI_EN: u32 = 1 << 7;
/// PIRQ A to D routing control (§13.1.17), and E to H (§13.1.19).
const PIRQ_ROUT: [usize; 2] = [0x60, 0x68];
/// LPC interface enables, u16 (§13.1.22): COM1 and the keyboard controller are decoded.
const LPC_EN: usize = 0x82;
/// General power management configuration 1, u16 (§13.8.1.1). SMI_LOCK stays once it is set, and keeps the system management
/// interrupt enabled.
const GEN_PMCON_1: usize = 0xa0;
const SMI_LOCK: u32 = 1 << 4;
/// Root complex base address (§13.1.35): bits 31:14 and the enable; nothing is behind it.
const RCBA: usize = 0xf0;

/// How many ports the power management block has.
pub const PM_PORTS: u64 = 128;

/// The function at 00:1f.0.
pub struct Lpc {
    config: Mutex<ConfigSpace>,
    ports: Arc<Bus>,
    pm: Arc<dyn BusDevice>,
    pirq: Arc<Pirq>,
    smi_lock: Arc<AtomicBool>,
    /// Where the power management block is on the bus now.
    mapped: Mutex<Option<u64>>,
}

/// What a checkpoint keeps of the LPC bridge.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct LpcState {
    config: ConfigState,
}

impl SavedState for LpcState {
    const VERSION: u32 = 1;
}

impl Lpc {
    /// Puts `pm` on `ports` wherever the guest says, sets the routes of `pirq`, and tells by `smi_lock` whether the system
    /// management interrupt's enables are locked.
    pub fn new(ports: Arc<Bus>, pm: Arc<dyn BusDevice>, pirq: Arc<Pirq>, smi_lock: Arc<AtomicBool>) -> Lpc {
        let identity = Identity { vendor: 0x8086, device: 0x2918, revision: 2, class: [6, 1, 0], subsystem: SUBSYSTEM };
        let mut config = ConfigSpace::new(identity);
        config.set(reg::HEADER_TYPE, &[0x80]);
        config.set(PMBASE, &[1, 0, 0, 0]);
        config.allow(PMBASE, &[0x80, 0xff]);
        config.allow(ACPI_CNTL, &[ACPI_EN as u8]);
        for at in PIRQ_ROUT {
            config.set(at, &[OFF; 4]);
            config.allow(at, &[OFF | 0xf; 4]);
        }
        config.set(LPC_EN, &0x0401u16.to_le_bytes());
        config.allow(GEN_PMCON_1, &[0xff, 0xff]);
        config.allow(RCBA, &0xffff_c001u32.to_le_bytes());
        Lpc { config: Mutex::new(config), ports, pm, pirq, smi_lock, mapped: Mutex::new(None) }
    }

    /// Where the guest put the power management block; `None` while it is off.
    pub fn pm_base(&self) -> Option<u16> {
        let config = lock(&self.config);
        let base = config.dword(PMBASE) as u16 & 0xff80;
        (config.dword(ACPI_CNTL) & ACPI_EN != 0 && base != 0).then_some(base)
    }

    /// Does what the registers say.
    fn apply(&self) {
        let routes: Vec<u8> = {
            let config = lock(&self.config);
            self.smi_lock.store(config.dword(GEN_PMCON_1) & SMI_LOCK != 0, Ordering::SeqCst);
            PIRQ_ROUT.iter().flat_map(|&at| config.dword(at).to_le_bytes()).collect()
        };
        self.pirq.set_routes(&routes);
        let wanted = self.pm_base().map(u64::from);
        let mut mapped = lock(&self.mapped);
        if *mapped == wanted {
            return;
        }
        if let Some(start) = mapped.take() {
            self.ports.remove(start);
        }
        // Over another device it is seen by nobody, until the guest moves it on.
        *mapped = wanted.filter(|&start| self.ports.insert(start, PM_PORTS, self.pm.clone()));
    }
}

impl PciDevice for Lpc {
    fn config(&self) -> &Mutex<ConfigSpace> {
        &self.config
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Option<Action> {
        {
            let mut config = lock(&self.config);
            let locked = config.dword(GEN_PMCON_1) & SMI_LOCK != 0;
            config.write(offset, data);
            if locked {
                let kept = config.dword(GEN_PMCON_1) | SMI_LOCK;
                config.write(GEN_PMCON_1, &(kept as u16).to_le_bytes());
            }
        }
        if touches(offset, data.len(), PMBASE, GEN_PMCON_1 + 2) {
            self.apply();
        }
        None
    }

    fn read_bar(&self, _: usize, _: u64, _: &mut [u8]) {}

    fn write_bar(&self, _: usize, _: u64, _: &[u8]) -> Option<Action> {
        None
    }
}

impl Component for Lpc {
    fn name(&self) -> String {
        "lpc".into()
    }

    fn reset(&self) {
        lock(&self.config).reset();
        self.apply();
    }

    fn save(&self) -> Result<Section, StateError> {
        Section::encode(&self.name(), &LpcState { config: lock(&self.config).save() })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let LpcState { config } = section.decode()?;
        lock(&self.config).restore(&config)?;
        self.apply();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::IrqLine;
    use crate::testkit::FakeLine;

    struct Block;
    impl BusDevice for Block {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _: u64, _: &[u8]) -> Option<Action> {
            None
        }
    }

    fn lpc() -> (Arc<Bus>, Vec<FakeLine>, Arc<Pirq>, Lpc) {
        let lines: Vec<FakeLine> = (0..24).map(|_| FakeLine::default()).collect();
        let pirq = Pirq::new(|gsi| Arc::new(lines[gsi as usize].clone()) as Arc<dyn IrqLine>);
        let ports = Arc::new(Bus::default());
        let lpc = Lpc::new(ports.clone(), Arc::new(Block), pirq.clone(), Arc::default());
        (ports, lines, pirq, lpc)
    }

    fn byte_at(ports: &Bus, port: u64) -> u8 {
        let mut byte = [0];
        ports.read(port, &mut byte);
        byte[0]
    }

    #[test]
    fn the_power_management_block_appears_when_both_registers_say_so() {
        let (ports, _, _, lpc) = lpc();
        lpc.write_config(0x40, &0x601u32.to_le_bytes());
        assert_eq!(byte_at(&ports, 0x604), 0xff);
        lpc.write_config(0x44, &[0x80]);
        assert_eq!(byte_at(&ports, 0x604), 4);
        lpc.write_config(0x41, &[0xb0]);
        assert_eq!((byte_at(&ports, 0x604), byte_at(&ports, 0xb008)), (0xff, 8));
        lpc.reset();
        assert_eq!((byte_at(&ports, 0xb008), lpc.pm_base()), (0xff, None));
    }

    #[test]
    fn the_lock_of_the_system_management_interrupt_stays_until_reset() {
        let (_, _, _, lpc) = lpc();
        let locked = || lpc.smi_lock.load(Ordering::SeqCst);
        lpc.write_config(0xa0, &[0xef, 0xff]);
        assert!(!locked());
        lpc.write_config(0xa0, &[0x10]);
        assert!(locked());
        for bytes in [&[0][..], &[0, 0], &[0; 4]] {
            lpc.write_config(0xa0, bytes);
            assert!(locked(), "{bytes:?}");
        }
        let section = lpc.save().unwrap();
        lpc.reset();
        assert!(!locked());
        lpc.restore(&section).unwrap();
        assert!(locked());
    }

    #[test]
    fn routing_registers_reach_the_router() {
        let (_, lines, pirq, lpc) = lpc();
        let line = pirq.line(31, 0);
        line.set(true);
        assert!(lines[16].level() && !lines[10].level());
        lpc.write_config(0x60, &[0x0a, 0x0a, 0x0b, 0x0b]);
        assert!(lines[10].level());
        lpc.write_config(0x60, &[0x8a]);
        assert!(!lines[10].level());
    }

    #[test]
    fn a_restored_bridge_does_what_the_saved_one_did() {
        let (_, _, _, saved) = lpc();
        saved.write_config(0x40, &0x601u32.to_le_bytes());
        saved.write_config(0x44, &[0x80]);
        saved.write_config(0x68, &[0x05]);
        let section = saved.save().unwrap();
        let (ports, lines, pirq, fresh) = lpc();
        let line = pirq.line(4, 0);
        line.set(true);
        fresh.restore(&section).unwrap();
        assert!(lines[5].level());
        assert_eq!(byte_at(&ports, 0x604), 4);
        assert_eq!(fresh.save().unwrap(), section);
    }

    #[test]
    fn no_access_to_configuration_space_panics() {
        let (_, _, _, lpc) = lpc();
        for offset in 0..0x110 {
            for len in [1, 2, 4, 8] {
                lpc.write_config(offset, &vec![0xff; len]);
                lpc.read_config(offset, &mut vec![0; len]);
            }
        }
        assert_eq!(lpc.pm_base(), Some(0xff80));
    }
}
