use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender};

use proptest::prelude::*;

use super::registers::LOCALITIES;
use super::*;
use crate::base::{InlineExecutor, WorkerThread};

const LOC_STATE: u64 = 0x00;
const LOC_CTRL: u64 = 0x08;
const LOC_STS: u64 = 0x0c;
const INTF_ID: u64 = 0x30;
const CTRL_REQ: u64 = 0x40;
const CTRL_STS: u64 = 0x44;
const CTRL_CANCEL: u64 = 0x48;
const CTRL_START: u64 = 0x4c;
const BUFFER: u64 = 0x80;
const REQUEST: u32 = 1;
const RELINQUISH: u32 = 2;
const SEIZE: u32 = 4;
const READY: u32 = 1;
const GO_IDLE: u32 = 2;

/// What was done with the fake TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    PowerOn,
    Execute(u8, Vec<u8>),
    Restore(TpmState),
}

/// What it is to answer, in order.
type Answers = Arc<Mutex<VecDeque<Result<Vec<u8>, TpmError>>>>;

/// A TPM that answers what it is told to, or with the command itself; what happens is told.
struct Fake {
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Answers,
    interrupt: Arc<Interrupt>,
    /// A command is carried out only when something comes from here.
    gate: Option<Receiver<()>>,
    started: Sender<()>,
}

impl TpmBackend for Fake {
    fn interrupt(&self) -> Arc<Interrupt> {
        self.interrupt.clone()
    }

    fn power_on(&mut self) -> Result<(), TpmError> {
        lock(&self.calls).push(Call::PowerOn);
        Ok(())
    }

    fn execute(&mut self, locality: u8, command: &[u8]) -> Result<Vec<u8>, TpmError> {
        lock(&self.calls).push(Call::Execute(locality, command.to_vec()));
        let _ = self.started.send(());
        if let Some(gate) = &self.gate {
            gate.recv().unwrap();
        }
        if self.interrupt.take_cancel() {
            return Ok(response(rc::CANCELED));
        }
        lock(&self.answers).pop_front().unwrap_or_else(|| Ok(command.to_vec()))
    }

    fn save(&mut self) -> Result<TpmState, TpmError> {
        Ok(state())
    }

    fn restore(&mut self, state: &TpmState) -> Result<(), TpmError> {
        lock(&self.calls).push(Call::Restore(state.clone()));
        Ok(())
    }
}

fn state() -> TpmState {
    let mut state = TpmState::default();
    state.permanent.bytes = Bytes(vec![1, 2, 3]);
    state
}

struct Fixture {
    device: TpmCrb,
    executor: Arc<dyn Executor>,
    calls: Arc<Mutex<Vec<Call>>>,
    answers: Answers,
    problems: Arc<Mutex<Vec<String>>>,
    gate: Sender<()>,
    started: Receiver<()>,
}

fn make(executor: Arc<dyn Executor>, gated: bool) -> Fixture {
    let (gate, opens) = mpsc::channel();
    let (starts, started) = mpsc::channel();
    let (calls, answers) = <(Arc<Mutex<Vec<Call>>>, Arc<Mutex<VecDeque<_>>>)>::default();
    let problems = Arc::new(Mutex::new(Vec::new()));
    let fake = Fake {
        calls: calls.clone(),
        answers: answers.clone(),
        interrupt: Arc::new(Interrupt::new().unwrap()),
        gate: gated.then_some(opens),
        started: starts,
    };
    let told = problems.clone();
    let sink: ProblemSink = Arc::new(move |_: &str, message| lock(&told).push(message));
    let device = TpmCrb::new(Box::new(fake), executor.clone(), sink);
    Fixture { device, executor, calls, answers, problems, gate, started }
}

/// A device whose TPM answers when the executor is flushed.
fn fixture() -> Fixture {
    make(Arc::new(InlineExecutor::new().unwrap()), false)
}

/// A device whose TPM works on a thread of its own, until [`Fixture::gate`] lets each command go.
fn threaded() -> Fixture {
    make(Arc::new(WorkerThread::spawn("tpm", || ()).unwrap()), true)
}

impl Fixture {
    fn read(&self, locality: u8, register: u64) -> u32 {
        let mut bytes = [0xee; 4];
        self.device.read(u64::from(locality) * 0x1000 + register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write(&self, locality: u8, register: u64, value: u32) {
        assert_eq!(self.device.write(u64::from(locality) * 0x1000 + register, &value.to_le_bytes()), None);
    }

    fn put(&self, locality: u8, bytes: &[u8]) {
        for (chunk, at) in bytes.chunks(8).zip((BUFFER..).step_by(8)) {
            self.device.write(u64::from(locality) * 0x1000 + at, chunk);
        }
    }

    fn get(&self, locality: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        self.device.read(u64::from(locality) * 0x1000 + BUFFER, &mut bytes);
        bytes
    }

    /// Takes the TPM and starts a command.
    fn start(&self, locality: u8, command: &[u8]) {
        self.write(locality, LOC_CTRL, REQUEST);
        self.write(locality, CTRL_REQ, READY);
        self.put(locality, command);
        self.write(locality, CTRL_START, 1);
    }

    fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.calls))
    }
}

/// A command of `len` bytes, for a fake that gives it back.
fn command(len: u32) -> Vec<u8> {
    let mut bytes = [&[0x80, 1][..], &len.to_be_bytes(), &0x17bu32.to_be_bytes()].concat();
    bytes.resize((len as usize).max(10), 0x5a);
    bytes
}

#[test]
fn the_registers_of_a_machine_that_was_just_switched_on_say_what_is_there() {
    let f = fixture();
    for locality in 0..LOCALITIES {
        assert_eq!(f.read(locality, LOC_STATE), 0x81, "valid, nobody's");
        assert_eq!(f.read(locality, LOC_STS), 0);
        // Type CRB, version 1, with a CRB and no FIFO.
        let id = f.read(locality, INTF_ID);
        assert_eq!((id & 0xf, id >> 4 & 0xf, id >> 13 & 3), (1, 1, 2));
        assert_eq!((f.read(locality, CTRL_STS), f.read(locality, CTRL_START)), (2, 0));
        assert_eq!((f.read(locality, 0x58), f.read(locality, 0x64)), (3968, 3968));
        let buffer = 0xfed4_0080 + 0x1000 * u32::from(locality);
        assert_eq!([0x5c, 0x60, 0x68, 0x6c].map(|at| f.read(locality, at)), [buffer, 0, buffer, 0]);
        assert_eq!(f.get(locality, 4), [0xff; 4]);
    }
}

#[test]
fn a_command_goes_to_the_tpm_as_long_as_its_header_says_and_the_response_clears_start() {
    let f = fixture();
    f.write(2, LOC_CTRL, REQUEST);
    assert_eq!((f.read(0, LOC_STATE), f.read(2, LOC_STS), f.read(0, LOC_STS)), (0x8b, 1, 0));
    f.write(2, CTRL_REQ, READY);
    assert_eq!((f.read(2, CTRL_REQ), f.read(2, CTRL_STS)), (0, 0));
    f.put(2, &[&command(12)[..], &[0x77; 20]].concat());
    f.write(2, CTRL_START, 1);
    assert_eq!((f.read(2, CTRL_START), f.get(2, 2)), (1, vec![0xff; 2]), "at work");
    assert_eq!(f.calls(), []);
    f.executor.flush();
    assert_eq!(f.calls(), [Call::Execute(2, command(12))]);
    assert_eq!((f.read(2, CTRL_START), f.get(2, 14)), (0, [command(12), vec![0; 2]].concat()));
    f.write(2, CTRL_REQ, GO_IDLE);
    assert_eq!(f.read(2, CTRL_STS), 2);
}

#[test]
fn any_width_of_access_reaches_the_same_bytes() {
    let f = fixture();
    f.device.write(LOC_CTRL, &[1]);
    // CTRL_REQ and CTRL_STS at once.
    f.device.write(CTRL_REQ, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    for (at, byte) in (BUFFER..).zip(command(10)) {
        f.device.write(at, &[byte]);
    }
    // The rest of the register is no reason to start.
    f.device.write(CTRL_START + 1, &[1, 1, 1]);
    assert_eq!(f.read(0, CTRL_START), 0);
    f.device.write(CTRL_START, &[1, 0]);
    f.executor.flush();
    assert_eq!(f.calls(), [Call::Execute(0, command(10))]);
    let mut wide = [0; 8];
    f.device.read(0x30, &mut wide);
    assert_eq!(wide[4..], [0xf4, 0x1a, 1, 0]);
    let mut across = [0; 8];
    f.device.read(BUFFER - 4, &mut across);
    assert_eq!(across, [0xff, 0xff, 0xff, 0xff, 0x80, 1, 0, 0]);
}

#[test]
fn sizes_that_no_command_can_have_are_answered_without_the_tpm() {
    let f = fixture();
    for size in [0, 9, 3969, 0x7fff_ffff, u32::MAX] {
        let mut bogus = command(10);
        bogus[2..6].copy_from_slice(&size.to_be_bytes());
        f.start(0, &bogus);
        assert_eq!((f.read(0, CTRL_START), f.get(0, 10)), (0, response(rc::COMMAND_SIZE)), "{size:#x}");
    }
    f.start(0, &command(3968));
    f.executor.flush();
    assert_eq!(f.calls(), [Call::Execute(0, command(3968))]);
}

#[test]
fn a_command_that_is_written_without_asking_for_ready_is_one_too() {
    let f = fixture();
    f.write(0, LOC_CTRL, REQUEST);
    assert_eq!(f.read(0, INTF_ID) >> 9 & 1, 1, "the device says that it can");
    assert_eq!(f.read(0, CTRL_STS), 2);
    f.put(0, &command(10));
    assert_eq!(f.read(0, CTRL_STS), 0);
    f.write(0, CTRL_START, 1);
    f.executor.flush();
    assert_eq!((f.calls(), f.get(0, 10)), (vec![Call::Execute(0, command(10))], command(10)));
}

#[test]
fn a_start_without_the_tpm_or_while_it_works_starts_nothing_more() {
    let f = fixture();
    f.write(0, CTRL_REQ, READY);
    f.write(0, CTRL_START, 1);
    assert_eq!((f.read(0, CTRL_START), f.read(0, CTRL_STS)), (0, 2));
    f.start(0, &command(10));
    f.put(0, &command(99));
    for _ in 0..3 {
        f.write(0, CTRL_START, 1);
        f.write(0, CTRL_REQ, GO_IDLE);
        f.write(0, CTRL_REQ, READY);
        f.write(1, CTRL_START, 1);
    }
    f.executor.flush();
    assert_eq!(f.calls(), [Call::Execute(0, command(10))]);
    assert_eq!(f.get(0, 10), command(10));
}

#[test]
fn a_locality_gets_the_tpm_when_it_is_given_up_and_a_higher_one_can_take_it() {
    let f = fixture();
    f.write(1, LOC_CTRL, REQUEST);
    f.write(0, LOC_CTRL, REQUEST);
    f.write(2, LOC_CTRL, REQUEST);
    let active = || f.read(0, LOC_STATE) >> 1 & 0xf;
    assert_eq!((active(), f.read(0, LOC_STS)), (1 | 1 << 1, 0));
    f.write(1, LOC_CTRL, RELINQUISH);
    assert_eq!(active(), 1 | 2 << 1, "the highest that waited");
    f.write(2, LOC_CTRL, RELINQUISH);
    assert_eq!(active(), 1);
    f.write(1, LOC_CTRL, RELINQUISH);
    assert_eq!(active(), 1, "it was not locality 1's to give");
    f.write(3, LOC_CTRL, SEIZE);
    assert_eq!((active(), f.read(0, LOC_STS), f.read(3, LOC_STS)), (1 | 3 << 1, 2, 1));
    f.write(2, LOC_CTRL, SEIZE);
    assert_eq!(active(), 1 | 3 << 1, "a lower one waits");
    for value in [REQUEST, SEIZE, RELINQUISH, u32::MAX] {
        f.write(4, LOC_CTRL, value);
    }
    assert_eq!(active(), 1 | 3 << 1, "the processor's own");
    f.write(3, LOC_CTRL, RELINQUISH);
    assert_eq!(active(), 1 | 2 << 1);
}

#[test]
fn nothing_of_a_command_is_left_for_the_next_locality() {
    let f = fixture();
    f.start(0, &command(20));
    f.executor.flush();
    f.write(1, LOC_CTRL, SEIZE);
    f.write(1, CTRL_REQ, READY);
    assert_eq!(f.get(1, 20), [0; 20]);
    assert_eq!(f.get(0, 20), [0xff; 20]);
    // A command that is given up while the TPM has it.
    f.put(1, &command(10));
    f.write(1, CTRL_START, 1);
    f.write(3, LOC_CTRL, SEIZE);
    f.executor.flush();
    f.write(3, CTRL_REQ, READY);
    assert_eq!((f.read(3, CTRL_START), f.get(3, 10)), (0, vec![0; 10]));
}

#[test]
fn a_cpu_never_waits_and_a_response_that_nobody_wants_any_more_is_dropped() {
    let f = threaded();
    f.start(0, &command(11));
    f.started.recv().unwrap();
    f.write(1, LOC_CTRL, SEIZE);
    f.write(1, CTRL_REQ, READY);
    f.put(1, &command(12));
    f.write(1, CTRL_START, 1);
    assert_eq!(f.read(1, CTRL_START), 1);
    f.gate.send(()).unwrap();
    f.started.recv().unwrap();
    assert_eq!(f.read(1, CTRL_START), 1, "the first response is not the second's");
    f.gate.send(()).unwrap();
    f.executor.flush();
    assert_eq!((f.read(1, CTRL_START), f.get(1, 12)), (0, command(12)));
    assert_eq!(f.calls(), [Call::Execute(0, command(11)), Call::Execute(1, command(12))]);
}

#[test]
fn a_cancel_reaches_the_command_that_is_at_work_and_no_later_one() {
    let f = threaded();
    f.start(0, &command(11));
    f.started.recv().unwrap();
    f.write(0, CTRL_CANCEL, 1);
    assert_eq!(f.read(0, CTRL_CANCEL), 1);
    f.gate.send(()).unwrap();
    f.executor.flush();
    assert_eq!((f.read(0, CTRL_START), f.get(0, 10)), (0, response(rc::CANCELED)));
    f.write(0, CTRL_CANCEL, 1);
    f.gate.send(()).unwrap();
    f.start(0, &command(12));
    f.executor.flush();
    assert_eq!(f.get(0, 12), command(12));
}

#[test]
fn a_command_that_waits_for_its_turn_is_canceled_at_once() {
    let f = threaded();
    f.start(0, &command(11));
    f.started.recv().unwrap();
    f.write(1, LOC_CTRL, SEIZE);
    f.start(1, &command(12));
    f.write(1, CTRL_CANCEL, 1);
    assert_eq!((f.read(1, CTRL_START), f.get(1, 10)), (0, response(rc::CANCELED)));
    f.gate.send(()).unwrap();
    f.executor.flush();
    assert_eq!(f.calls(), [Call::Execute(0, command(11))]);
    assert_eq!(f.get(1, 10), response(rc::CANCELED));
}

#[test]
fn a_tpm_that_fails_answers_with_a_failure_and_a_person_hears_of_it_once() {
    let f = fixture();
    for _ in 0..3 {
        lock(&f.answers).push_back(Err(TpmError::Gone));
        f.start(0, &command(10));
        f.executor.flush();
        assert_eq!((f.read(0, CTRL_START), f.get(0, 10)), (0, response(rc::FAILURE)));
    }
    let problems = lock(&f.problems).clone();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("swtpm, the process that is the TPM, has ended"), "{problems:?}");
    // A response that is longer than the buffer is one too.
    lock(&f.answers).push_back(Ok(vec![0; 3969]));
    f.start(0, &command(10));
    f.executor.flush();
    assert_eq!(f.get(0, 10), response(rc::FAILURE));
}

#[test]
fn a_reset_takes_everything_back_to_power_on_before_the_next_command() {
    let f = threaded();
    f.start(3, &command(11));
    f.started.recv().unwrap();
    f.device.reset();
    assert_eq!((f.read(0, LOC_STATE), f.read(3, CTRL_STS)), (0x81, 2));
    f.start(0, &command(12));
    f.gate.send(()).unwrap();
    f.gate.send(()).unwrap();
    f.executor.flush();
    assert_eq!(f.calls(), [Call::Execute(3, command(11)), Call::PowerOn, Call::Execute(0, command(12))]);
    assert_eq!(f.get(0, 12), command(12));
}

#[test]
fn a_checkpoint_holds_registers_buffer_and_what_the_tpm_knows() {
    let f = fixture();
    f.write(3, LOC_CTRL, REQUEST);
    f.write(0, LOC_CTRL, REQUEST);
    f.write(3, LOC_CTRL, RELINQUISH);
    f.write(1, LOC_CTRL, SEIZE);
    f.start(1, &command(30));
    let section = f.device.save().unwrap();
    assert_eq!(f.read(1, CTRL_START), 0, "the response was waited for");
    let twin = fixture();
    twin.device.restore(&section).unwrap();
    assert_eq!(twin.calls(), [Call::Restore(state())]);
    assert_eq!((twin.get(1, 30), twin.read(0, LOC_STATE), twin.read(0, LOC_STS)), (command(30), 0x87, 2));
    assert_eq!(twin.device.save().unwrap(), section);
}

#[test]
fn a_state_that_no_device_saved_is_refused() {
    let good = || TpmCrbState {
        locality: Some(1),
        requests: 1,
        seized: 0,
        phase: Phase::Ready,
        cancel: false,
        buffer: Bytes(vec![0; MAX_MESSAGE]),
        tpm: state(),
    };
    let bad = [
        TpmCrbState { locality: Some(4), ..good() },
        TpmCrbState { locality: None, ..good() },
        TpmCrbState { requests: 0x20, ..good() },
        TpmCrbState { seized: 0xff, ..good() },
        TpmCrbState { phase: Phase::Executing, ..good() },
        TpmCrbState { buffer: Bytes(vec![0; 5]), ..good() },
    ];
    let f = fixture();
    f.device.restore(&Section::encode(NAME, &good()).unwrap()).unwrap();
    for state in bad {
        f.device.restore(&Section::encode(NAME, &state).unwrap()).unwrap_err();
    }
}

/// One access of a hostile guest.
#[derive(Debug, Clone)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Start(u8, u32),
    Flush,
    Reset,
}

fn access() -> impl Strategy<Value = Access> {
    let register = prop_oneof![0..0x80u64, 0x78..0x98u64, 0..0x1000u64];
    let place = (0..u64::from(LOCALITIES), register).prop_map(|(locality, at)| locality * 0x1000 + at);
    let bytes = prop::collection::vec(prop_oneof![0..8u8, any::<u8>()], 1..=8);
    prop_oneof![
        4 => (place.clone(), 1..=8usize).prop_map(|(at, len)| Access::Read(at, len)),
        8 => (place, bytes).prop_map(|(at, bytes)| Access::Write(at, bytes)),
        4 => (0..LOCALITIES, prop_oneof![0..4000u32, any::<u32>()]).prop_map(|(l, size)| Access::Start(l, size)),
        2 => Just(Access::Flush),
        1 => Just(Access::Reset),
    ]
}

proptest! {
    #[test]
    fn whatever_a_guest_does_the_tpm_sees_whole_commands_and_start_clears(
        accesses in prop::collection::vec(access(), 0..200),
    ) {
        let f = fixture();
        for access in accesses {
            match access {
                Access::Read(at, len) if at + len as u64 <= LEN => f.device.read(at, &mut vec![0; len]),
                Access::Write(at, bytes) if at + bytes.len() as u64 <= LEN => {
                    prop_assert_eq!(f.device.write(at, &bytes), None);
                }
                Access::Start(locality, size) => {
                    let mut bytes = command(10);
                    bytes[2..6].copy_from_slice(&size.to_be_bytes());
                    f.write(locality, LOC_CTRL, SEIZE);
                    f.start(locality, &bytes);
                }
                Access::Reset => f.device.reset(),
                _ => f.executor.flush(),
            }
        }
        f.executor.flush();
        for locality in 0..LOCALITIES {
            prop_assert_eq!(f.read(locality, CTRL_START), 0);
        }
        for call in f.calls() {
            if let Call::Execute(locality, bytes) = call {
                let size = u32::from_be_bytes(bytes[2..6].try_into().unwrap()) as usize;
                prop_assert!(locality < 4 && size == bytes.len() && (10..=MAX_MESSAGE).contains(&size));
            }
        }
        let section = f.device.save().unwrap();
        fixture().device.restore(&section).unwrap();
    }
}
