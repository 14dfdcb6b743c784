//! The ports by which software raises the system management interrupt (ICH9 §13.8.2): APM_CNT at 0xb2, a command, and
//! APM_STS at 0xb3, its argument. Firmware reads them back in system management mode.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::{PmBlock, lock};
use crate::base::{Component, SavedState, Section, StateError};
use crate::hw::{Action, BusDevice, SystemManagement};

const CONTROL: u64 = 0;

/// The two ports.
pub struct Apm {
    power: Arc<PmBlock>,
    management: Arc<dyn SystemManagement>,
    /// Command and argument.
    registers: Mutex<[u8; 2]>,
}

/// What a checkpoint keeps of [`Apm`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApmState {
    control: u8,
    status: u8,
}

impl SavedState for ApmState {
    const VERSION: u32 = 1;
}

impl Apm {
    /// Ports that raise the interrupt where `power` has it enabled.
    pub fn new(power: Arc<PmBlock>, management: Arc<dyn SystemManagement>) -> Apm {
        Apm { power, management, registers: Mutex::default() }
    }
}

impl BusDevice for Apm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (byte, &register) in data.iter_mut().zip(lock(&self.registers).iter().skip(offset as usize)) {
            *byte = register;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        for (register, &byte) in lock(&self.registers).iter_mut().skip(offset as usize).zip(data) {
            *register = byte;
        }
        if offset == CONTROL && self.power.has_software_smi() {
            self.management.interrupt();
        }
        None
    }
}

impl Component for Apm {
    fn name(&self) -> String {
        "apm".into()
    }

    fn reset(&self) {
        *lock(&self.registers) = [0; 2];
    }

    fn save(&self) -> Result<Section, StateError> {
        let [control, status] = *lock(&self.registers);
        Section::encode(&self.name(), &ApmState { control, status })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let ApmState { control, status } = section.decode()?;
        *lock(&self.registers) = [control, status];
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::clock::fake::FakeClock;
    use super::*;
    use crate::base::InlineExecutor;
    use crate::testkit::{FakeLine, FakeManagement};

    fn ports() -> (Arc<PmBlock>, Arc<FakeManagement>, Apm) {
        let executor = Arc::new(InlineExecutor::new().unwrap());
        let power = PmBlock::new(Arc::new(FakeClock::at(0)), Arc::new(FakeLine::default()), executor).unwrap();
        let (power, management) = (Arc::new(power.with_smm()), Arc::new(FakeManagement::default()));
        let apm = Apm::new(power.clone(), management.clone());
        (power, management, apm)
    }

    #[test]
    fn a_command_interrupts_where_that_is_enabled_and_an_argument_never_does() {
        let (power, management, apm) = ports();
        apm.write(0, &[7]);
        for enables in [0x01, 0x20] {
            power.write(0x30, &[enables]);
            apm.write(0, &[7]);
        }
        assert_eq!(management.interrupts(), 0);
        power.write(0x30, &[0x21]);
        apm.write(1, &[9]);
        assert_eq!(management.interrupts(), 0);
        apm.write(0, &[8]);
        assert_eq!(management.interrupts(), 1);
        let mut both = [0; 2];
        apm.read(0, &mut both);
        assert_eq!(both, [8, 9]);
        let section = apm.save().unwrap();
        apm.reset();
        apm.read(0, &mut both);
        assert_eq!(both, [0, 0]);
        apm.restore(&section).unwrap();
        assert_eq!((apm.save().unwrap(), management.interrupts()), (section, 1));
    }

    #[test]
    fn no_access_of_any_size_panics() {
        let (_, _, apm) = ports();
        for offset in 0..2 {
            for len in 1..=8 {
                apm.write(offset, &vec![0xff; len]);
                apm.read(offset, &mut vec![0; len]);
            }
        }
    }
}
