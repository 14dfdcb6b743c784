//! The command response buffer of a TPM 2.0 (TCG PC Client Platform TPM Profile 1.05, "PTP", §6.5.3) at 0xfed40000: a page
//! for each of five localities, with registers and one data buffer that holds a command, then its response.
//!
//! No CPU waits for the TPM: CTRL_START hands the command to the device's thread, and is clear again when the response is in
//! the buffer. The device raises no interrupt and touches no guest memory, so a response that arrives while the machine is
//! paused changes nothing but its own registers; a checkpoint waits for it.

mod registers;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::backend::tpm::{Interrupt, MAX_MESSAGE, TpmBackend, TpmError, TpmState};
use crate::base::{Bytes, Component, Executor, SavedState, Section, StateError, Task, explain};
use crate::hw::{Action, BusDevice, ProblemSink};
use registers::{Effect, Phase, Registers, rc};

/// Where a PC has its TPM (PTP 1.05 §6.5.1).
pub const ADDRESS: u64 = 0xfed4_0000;
/// Bytes of all localities together.
pub const LEN: u64 = registers::LOCALITIES as u64 * registers::PAGE;
/// Where the control area is in locality 0's page: what the ACPI table TPM2 names.
pub const CONTROL_AREA: u64 = 0x40;

const NAME: &str = "tpm";

/// The device.
pub struct TpmCrb {
    shared: Arc<Shared>,
    executor: Arc<dyn Executor>,
    interrupt: Arc<Interrupt>,
}

struct Shared {
    state: Mutex<State>,
    /// Locked for as long as it works. A CPU never does.
    backend: Mutex<Box<dyn TpmBackend>>,
    interrupt: Arc<Interrupt>,
    problems: ProblemSink,
}

struct State {
    registers: Registers,
    /// The TPM is to lose its power and get it back.
    power_on: bool,
    /// A command that the device's thread has not taken yet.
    waiting: Option<Command>,
    /// The number of the command that it works on.
    working: Option<u64>,
    /// The number of the command whose response is wanted; others were given up.
    wanted: u64,
    /// A job is on its way to the device's thread.
    posted: bool,
    /// A problem was told since the TPM last got power.
    told: bool,
}

struct Command {
    number: u64,
    locality: u8,
    bytes: Vec<u8>,
}

/// What the device's thread does next.
enum Work {
    PowerOn,
    Execute(Command),
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A response without a body (TPM 2.0 part 1 §18.2): TPM_ST_NO_SESSIONS, its size, the code.
fn response(code: u32) -> Vec<u8> {
    [&0x8001u16.to_be_bytes()[..], &10u32.to_be_bytes(), &code.to_be_bytes()].concat()
}

impl State {
    fn new() -> State {
        State {
            registers: Registers::power_on(),
            power_on: false,
            waiting: None,
            working: None,
            wanted: 0,
            posted: false,
            told: false,
        }
    }

    /// Takes the next piece of work; the thread has none left when there is none.
    fn take(&mut self, interrupt: &Interrupt) -> Option<Work> {
        // What was meant for the last command is not for the next.
        interrupt.forget_cancel();
        self.working = None;
        if std::mem::take(&mut self.power_on) {
            return Some(Work::PowerOn);
        }
        if let Some(command) = self.waiting.take() {
            self.working = Some(command.number);
            return Some(Work::Execute(command));
        }
        self.posted = false;
        None
    }

    /// Gives up the present command, wherever it is.
    fn give_up(&mut self, interrupt: &Interrupt) {
        self.wanted += 1;
        self.waiting = None;
        if self.working.is_some() {
            interrupt.cancel();
        }
    }
}

impl Shared {
    /// Works until there is nothing left to do.
    fn work(&self) {
        let mut backend = lock(&self.backend);
        loop {
            // The lock is not held while the TPM works.
            let work = lock(&self.state).take(&self.interrupt);
            match work {
                None => return,
                Some(Work::PowerOn) => match backend.power_on() {
                    Ok(()) => lock(&self.state).told = false,
                    Err(error) => self.complain(&error),
                },
                Some(Work::Execute(Command { number, locality, bytes })) => {
                    let answer = match backend.execute(locality, &bytes) {
                        Ok(answer) if answer.len() <= MAX_MESSAGE => answer,
                        Ok(_) => {
                            self.complain(&TpmError::Nonsense { what: "carry out a command" });
                            response(rc::FAILURE)
                        }
                        Err(error) => {
                            self.complain(&error);
                            response(rc::FAILURE)
                        }
                    };
                    let mut state = lock(&self.state);
                    if state.wanted == number {
                        state.registers.complete(&answer);
                    }
                }
            }
        }
    }

    /// Tells a person once, and not of an end that was asked for.
    fn complain(&self, error: &TpmError) {
        let told = std::mem::replace(&mut lock(&self.state).told, true);
        if !told && !matches!(error, TpmError::Ended) {
            let message = format!("{}. The guest's TPM answers every command with a failure", explain(error));
            (self.problems)(NAME, message);
        }
    }
}

/// A visit to the device's thread.
struct Job(Arc<Shared>);

impl Task for Job {
    fn descriptors(&self) -> Vec<(std::os::fd::RawFd, u32)> {
        Vec::new()
    }

    fn start(&mut self) {
        self.0.work();
    }

    fn ready(&mut self, _: u32) {}

    fn stopped(self: Box<Self>) {}
}

impl TpmCrb {
    /// A device in front of `backend`, which has power. It waits for the TPM on `executor`, which nobody else should use.
    pub fn new(backend: Box<dyn TpmBackend>, executor: Arc<dyn Executor>, problems: ProblemSink) -> TpmCrb {
        let interrupt = backend.interrupt();
        let shared = Shared {
            state: Mutex::new(State::new()),
            backend: Mutex::new(backend),
            interrupt: interrupt.clone(),
            problems,
        };
        TpmCrb { shared: Arc::new(shared), executor, interrupt }
    }

    /// Sends a job to the device's thread, unless one is on its way: a guest can't fill its mailbox.
    fn post(&self, state: &mut State) {
        if !std::mem::replace(&mut state.posted, true) {
            let job = self.executor.submit(Box::new(Job(self.shared.clone())));
            self.executor.stop(job);
        }
    }

    fn carry_out(&self, state: &mut State, effect: Effect) {
        match effect {
            Effect::None => (),
            Effect::GiveUp => state.give_up(&self.interrupt),
            Effect::Cancel if state.waiting.take().is_some() => {
                state.registers.complete(&response(rc::CANCELED));
            }
            Effect::Cancel => {
                if state.working == Some(state.wanted) {
                    self.interrupt.cancel();
                }
            }
            Effect::Start { locality } => match state.registers.command() {
                Some(bytes) => {
                    state.wanted += 1;
                    state.waiting = Some(Command { number: state.wanted, locality, bytes: bytes.to_vec() });
                    self.post(state);
                }
                None => state.registers.complete(&response(rc::COMMAND_SIZE)),
            },
        }
    }
}

impl BusDevice for TpmCrb {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.shared.state).registers.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Action> {
        let mut state = lock(&self.shared.state);
        for effect in state.registers.write(offset, data) {
            self.carry_out(&mut state, effect);
        }
        None
    }
}

impl Drop for TpmCrb {
    fn drop(&mut self) {
        // The machine ends: its thread must not wait for a TPM that thinks.
        self.interrupt.end();
    }
}

/// What a checkpoint keeps of the device, the TPM behind it included.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmCrbState {
    locality: Option<u8>,
    requests: u8,
    seized: u8,
    phase: Phase,
    cancel: bool,
    buffer: Bytes,
    tpm: TpmState,
}

impl SavedState for TpmCrbState {
    const VERSION: u32 = 1;
}

impl Component for TpmCrb {
    fn name(&self) -> String {
        NAME.into()
    }

    fn reset(&self) {
        let mut state = lock(&self.shared.state);
        state.give_up(&self.interrupt);
        state.registers = Registers::power_on();
        // The thread does it before any command of the new life.
        state.power_on = true;
        self.post(&mut state);
    }

    fn save(&self) -> Result<Section, StateError> {
        // Whatever was asked of the TPM is answered, or has failed, after this.
        self.executor.flush();
        let tpm = lock(&self.shared.backend).save();
        let tpm = tpm.map_err(|error| StateError::invalid(NAME, explain(&error)))?;
        let Registers { locality, requests, seized, phase, cancel, buffer } =
            lock(&self.shared.state).registers.clone();
        let buffer = Bytes(buffer);
        Section::encode(NAME, &TpmCrbState { locality, requests, seized, phase, cancel, buffer, tpm })
    }

    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let TpmCrbState { locality, requests, seized, phase, cancel, buffer: Bytes(buffer), tpm } = section.decode()?;
        let restored = Registers { locality, requests, seized, phase, cancel, buffer };
        restored.check().map_err(|why| StateError::invalid(NAME, why))?;
        self.executor.flush();
        lock(&self.shared.backend).restore(&tpm).map_err(|error| StateError::invalid(NAME, explain(&error)))?;
        lock(&self.shared.state).registers = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
