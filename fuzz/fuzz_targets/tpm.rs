//! The TPM's command response buffer: any access to any locality, with a TPM that answers sense, nonsense or nothing.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use orangery_fuzz::Choices;
use vmm_core::backend::tpm::{Interrupt, MAX_MESSAGE, TpmBackend, TpmError, TpmState};
use vmm_core::base::{Component, Executor, InlineExecutor};
use vmm_core::devices::tpm_crb::{LEN, TpmCrb};
use vmm_core::hw::BusDevice;

/// The registers that do something: locality control and status, request, cancel, start, and the buffer's header.
const PLACES: &[u64] = &[0x00, 0x08, 0x0c, 0x30, 0x40, 0x44, 0x48, 0x4c, 0x58, 0x7e, 0x80, 0x82, 0x86, 0xff8];
const START: u64 = 0x4c;

/// A TPM that decides by a command's last byte how it behaves.
struct Moody(Arc<Interrupt>);

impl TpmBackend for Moody {
    fn interrupt(&self) -> Arc<Interrupt> {
        self.0.clone()
    }

    fn power_on(&mut self) -> Result<(), TpmError> {
        Ok(())
    }

    fn execute(&mut self, locality: u8, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        assert!(locality < 4, "a command from locality {locality}");
        assert!((10..=MAX_MESSAGE).contains(&command.len()), "a command of {} bytes", command.len());
        assert_eq!(command[2..6], (command.len() as u32).to_be_bytes(), "a command that is cut");
        match command[command.len() - 1] % 5 {
            0 => Err(TpmError::Gone),
            1 => Ok(Vec::new()),
            2 => Ok(vec![0xee; MAX_MESSAGE + 1]),
            3 => Ok(vec![0xee; MAX_MESSAGE]),
            _ => Ok(command.to_vec()),
        }
    }

    fn save(&mut self) -> Result<TpmState, TpmError> {
        Ok(TpmState::default())
    }

    fn restore(&mut self, _: &TpmState) -> Result<(), TpmError> {
        Ok(())
    }
}

fn device(executor: &InlineExecutor) -> TpmCrb {
    let interrupt = Arc::new(Interrupt::new().expect("an eventfd"));
    TpmCrb::new(Box::new(Moody(interrupt)), Arc::new(executor.clone()), Arc::new(|_, _| ()))
}

fuzz_target!(|data: &[u8]| {
    let executor = InlineExecutor::new().expect("an executor");
    let mut device = device(&executor);
    let mut choices = Choices::new(data);
    for _ in 0..256 {
        if !choices.any() {
            break;
        }
        let action = choices.u8();
        let page = 0x1000 * u64::from(choices.u8() % 5);
        match action % 8 {
            0..=2 => {
                let at = page + choices.one_of(PLACES);
                let len = 1 + usize::from(choices.u8() % 8);
                device.write(at, choices.bytes(len));
            }
            3 => {
                let (at, len) = (u64::from(choices.u16()) % LEN, usize::from(choices.u8() % 9));
                if at + len as u64 <= LEN {
                    device.read(at, &mut vec![0; len]);
                    device.write(at, choices.bytes(len));
                }
            }
            4 | 5 => {
                // What an honest driver does, with a size of any kind.
                let size = if choices.u8() % 4 == 0 { choices.u32() } else { u32::from(choices.u16() % 4000) };
                device.write(page + 0x08, &[choices.one_of(&[1, 4, 2])]);
                device.write(page + 0x40, &[1]);
                device.write(page + 0x80, &[&[0x80, 1][..], &size.to_be_bytes()].concat());
                device.write(page + 0x86, &[0, 0, 1, choices.u8()]);
                device.write(page + START, &[1]);
            }
            6 => executor.flush(),
            _ if choices.u8() % 2 == 0 => device.reset(),
            _ => {
                let saved = device.save().expect("a state");
                let twin = self::device(&executor);
                twin.restore(&saved).expect("a state that was saved");
                assert_eq!(twin.save().expect("a state"), saved, "a restored device saves the same");
                device = twin;
            }
        }
    }
    executor.flush();
    for locality in 0..5 {
        let mut start = [0xff; 4];
        device.read(0x1000 * locality + START, &mut start);
        assert_eq!(start, [0; 4], "a command that never ends");
    }
});
