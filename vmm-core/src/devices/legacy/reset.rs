//! The ways in which a guest resets the machine by a port: 0xcf9 (ICH9 §13.7.5) and 0x92 (§13.7.4). The keyboard
//! controller has a third.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::lock;
use crate::base::{Component, SavedState, Section, StateError};
use crate::hw::{Action, BusDevice};
use crate::pci::ConfigPorts;

/// The offset of the reset control register, 0xcf9, among the configuration ports.
const RESET_CONTROL: u64 = 1;
/// Reset the CPU: it happens when this is written as 1.
const RESET_CPU: u8 = 1 << 2;
/// System reset and full reset: what kind it is to be; remembered.
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// Ports 0xcf8 to 0xcff: the PCI configuration ports, with the reset control register in their midst.
pub struct ResetControl {
    config: Arc<ConfigPorts>,
    register: Mutex<u8>,
}

/// What a checkpoint keeps of [`ResetControl`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    config_address: u32,
    register: u8,
}

impl SavedState for ResetControlState {
    const VERSION: u32 = 1;
}

impl ResetControl {
    /// The eight ports.
    pub fn new(config: Arc<ConfigPorts>) -> ResetControl {
        ResetControl { config, register: Mutex::new(0) }
    }
}

impl BusDevice for ResetControl {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, &mut *data) {
            (RESET_CONTROL, [byte]) => *byte = *lock(&self.register),
            _ => self.config.read(offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        match (offset, data) {
            (RESET_CONTROL, &[byte]) => {
                *lock(&self.register) = byte & RESET_KIND;
                (byte & RESET_CPU != 0).then_some(Action::Reset)
            }
            _ => self.config.write(offset, data),
        }
    }
}

impl Component for ResetControl {
    fn name(&self) -> String {
        "config-ports".into()
    }

    fn reset(&self) {
        self.config.set_address(0);
        *lock(&self.register) = 0;
    }

    fn save(&self) -> Result<Section, StateError> {
        let state = ResetControlState { config_address: self.config.address(), register: *lock(&self.register) };
        Section::encode(&self.name(), &state)
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let ResetControlState { config_address, register } = section.decode()?;
        self.config.set_address(config_address);
        *lock(&self.register) = register & RESET_KIND;
        Ok(())
    }
}

/// Reset the machine when this rises.
const INIT_NOW: u8 = 1;
/// Address line 20 is passed through: it always is, the bit is remembered.
const ALT_A20: u8 = 2;

/// Port 0x92.
#[derive(Default)]
pub struct Port92 {
    register: Mutex<u8>,
}

/// What a checkpoint keeps of [`Port92`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port92State {
    register: u8,
}

impl SavedState for Port92State {
    const VERSION: u32 = 1;
}

impl BusDevice for Port92 {
    fn read(&self, _: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = *lock(&self.register);
        }
    }

    fn write(&self, _: u64, data: &[u8]) -> Option<Action> {
        let &[byte] = data else { return None };
        let mut register = lock(&self.register);
        let rose = byte & !*register & INIT_NOW != 0;
        *register = byte & (INIT_NOW | ALT_A20);
        rose.then_some(Action::Reset)
    }
}

impl Component for Port92 {
    fn name(&self) -> String {
        "port-92".into()
    }

    fn reset(&self) {
        *lock(&self.register) = 0;
    }

    fn save(&self) -> Result<Section, StateError> {
        Section::encode(&self.name(), &Port92State { register: *lock(&self.register) })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let Port92State { register } = section.decode()?;
        *lock(&self.register) = register & (INIT_NOW | ALT_A20);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::PciRoot;

    fn ports() -> ResetControl {
        let root = PciRoot::new(Arc::default(), Arc::default());
        ResetControl::new(root.config_ports())
    }

    #[test]
    fn a_byte_at_cf9_resets_and_a_dword_at_cf8_is_an_address() {
        let ports = ports();
        assert_eq!(ports.write(0, &0x8000_f804u32.to_le_bytes()), None);
        assert_eq!(ports.write(1, &[0x02]), None);
        let (mut byte, mut dword) = ([0xff], [0xff; 4]);
        ports.read(1, &mut byte);
        ports.read(0, &mut dword);
        assert_eq!((byte, u32::from_le_bytes(dword)), ([0x02], 0x8000_f804));
        assert_eq!(ports.write(1, &[0x06]), Some(Action::Reset));
        assert_eq!(ports.write(1, &[0x0e]), Some(Action::Reset));
        let section = ports.save().unwrap();
        let fresh = self::ports();
        fresh.restore(&section).unwrap();
        assert_eq!(fresh.save().unwrap(), section);
        ports.reset();
        ports.read(0, &mut dword);
        assert_eq!(dword, [0; 4]);
    }

    #[test]
    fn port_92_resets_only_when_its_bit_rises() {
        let port = Port92::default();
        assert_eq!(port.write(0, &[0xfe]), None);
        let mut byte = [0xff];
        port.read(0, &mut byte);
        assert_eq!(byte, [2]);
        assert_eq!(port.write(0, &[3]), Some(Action::Reset));
        assert_eq!(port.write(0, &[3]), None);
        let section = port.save().unwrap();
        let fresh = Port92::default();
        fresh.restore(&section).unwrap();
        assert_eq!(fresh.write(0, &[1]), None);
        assert_eq!(fresh.write(0, &[1, 2]), None);
    }

    #[test]
    fn no_access_of_any_size_panics() {
        let ports = ports();
        for offset in 0..8 {
            for len in 1..=8 {
                ports.write(offset, &vec![0xff; len]);
                ports.read(offset, &mut vec![0; len]);
            }
        }
    }
}
