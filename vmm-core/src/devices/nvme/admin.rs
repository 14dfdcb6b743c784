//! Admin commands (NVM Express base 1.4 §5).

use super::controller::{Controller, Live, Outcome, Shadow};
use super::doorbells::Side;
use super::identify::{self, MAX_EVENT_REQUESTS, NAMESPACE};
use super::log::Event;
use super::namespace::{self, EVERY_NAMESPACE, Plan};
use super::prp;
use super::queues::{COMMAND, COMPLETION, Command, Completion, Submission, fits};
use super::registers::MAX_ENTRIES;
use super::status::Status;
use super::{Shared, lock};
use crate::backend::disk::Request;
use crate::base::GuestAddress;

/// Opcodes.
mod opcode {
    pub const DELETE_SUBMISSION: u8 = 0x00;
    pub const CREATE_SUBMISSION: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_COMPLETION: u8 = 0x04;
    pub const CREATE_COMPLETION: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const EVENT_REQUEST: u8 = 0x0c;
    pub const DOORBELL_BUFFERS: u8 = 0x7c;

    pub const ALL: [u8; 11] = [
        DELETE_SUBMISSION,
        CREATE_SUBMISSION,
        GET_LOG_PAGE,
        DELETE_COMPLETION,
        CREATE_COMPLETION,
        IDENTIFY,
        ABORT,
        SET_FEATURES,
        GET_FEATURES,
        EVENT_REQUEST,
        DOORBELL_BUFFERS,
    ];
}

/// In the log of effects: the command is supported; it changes blocks. I/O commands follow the 256 admin ones.
const SUPPORTED: u32 = 1;
const CHANGES_BLOCKS: u32 = 1 << 1;
const IO_COMMANDS: usize = 256;

type Answer = Result<u32, Status>;

impl Controller {
    /// Runs an admin command, or begins it.
    pub fn admin(&mut self, shared: &Shared, command: &Command) -> Outcome {
        let Some(page) = self.live.as_ref().map(|live| live.page) else { return Outcome::Waits };
        if !opcode::ALL.contains(&command.opcode()) {
            return Outcome::Done(Err(Status::INVALID_OPCODE));
        }
        // Admin commands over PCIe describe their data by PRPs (§4.2).
        if command.is_fused() || command.data_kind() != 0 {
            return Outcome::Done(Err(Status::INVALID_FIELD));
        }
        let Some(live) = &mut self.live else { return Outcome::Waits };
        Outcome::Done(match command.opcode() {
            opcode::CREATE_COMPLETION => create_completion(live, shared, command),
            opcode::CREATE_SUBMISSION => create_submission(live, shared, command),
            opcode::DELETE_COMPLETION => delete_completion(live, shared, command),
            opcode::DELETE_SUBMISSION => return delete_submission(live, shared, command),
            opcode::EVENT_REQUEST if live.event_requests.len() < MAX_EVENT_REQUESTS => {
                live.release();
                live.event_requests.push_back(command.id());
                return Outcome::Waits;
            }
            opcode::EVENT_REQUEST => Err(Status::TOO_MANY_EVENT_REQUESTS),
            opcode::ABORT => abort(live, shared, command),
            opcode::DOORBELL_BUFFERS => set_shadow(live, shared, command),
            opcode::GET_FEATURES => live.features.get(command, command.namespace() == NAMESPACE),
            opcode::SET_FEATURES => return self.set_features(command),
            opcode::IDENTIFY => self.identify(shared, page, command),
            _ => self.get_log_page(shared, page, command),
        })
    }

    fn set_features(&mut self, command: &Command) -> Outcome {
        let Some(live) = &mut self.live else { return Outcome::Waits };
        let existing = matches!(command.namespace(), NAMESPACE | EVERY_NAMESPACE);
        let turns_cache_off = live.features.turns_cache_off(command);
        let warned = live.features.critical_warning() != 0 && live.features.reports_temperature();
        let answer = live.features.set(command, existing);
        if !warned && live.features.critical_warning() != 0 && live.features.reports_temperature() {
            self.log.notice(Event::Temperature);
        }
        if answer.is_ok() && turns_cache_off && !self.geometry.readonly {
            // What the cache holds is not left behind.
            return Outcome::Disk(Plan { requests: vec![Request::Flush], counts: None, block: 0 });
        }
        Outcome::Done(answer)
    }

    fn identify(&self, shared: &Shared, page: u64, command: &Command) -> Answer {
        let namespace = command.namespace();
        let bytes = match command.dword(10) as u8 {
            0x00 if namespace == NAMESPACE => identify::namespace(&self.geometry),
            0x01 => identify::controller(&self.serial, &self.geometry),
            0x02 if namespace < EVERY_NAMESPACE - 1 => identify::active_namespaces(namespace),
            0x03 if namespace == NAMESPACE => identify::descriptors(&self.serial),
            0x00 | 0x02 | 0x03 => return Err(Status::INVALID_NAMESPACE),
            _ => return Err(Status::INVALID_FIELD),
        };
        let runs = prp::walk(&shared.memory, page, command.prps(), identify::LEN as u64)?;
        runs.write(&shared.memory, &bytes).map(|()| 0)
    }

    fn get_log_page(&mut self, shared: &Shared, page: u64, command: &Command) -> Answer {
        let warning = self.live.as_ref().map_or(0, |live| live.features.critical_warning());
        let log = command.dword(10) as u8;
        let dwords = u64::from(command.dword(10) >> 16) | u64::from(command.dword(11) & 0xffff) << 16;
        let (len, offset) = (4 * (dwords + 1), command.qword(12));
        let Some(bytes) = self.log.page(log, warning, &self.effects()) else {
            return Err(Status::INVALID_LOG_PAGE);
        };
        if !matches!(command.namespace(), 0 | NAMESPACE | EVERY_NAMESPACE) {
            return Err(Status::INVALID_NAMESPACE);
        }
        if !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let runs = namespace::data(&shared.memory, page, command, len)?;
        let part = identify::part(&bytes, offset, &runs).ok_or(Status::INVALID_FIELD)?;
        runs.write(&shared.memory, &part)?;
        if command.dword(10) & 1 << 15 == 0 {
            self.log.was_read(log);
        }
        Ok(0)
    }

    /// Which commands there are (§5.14.1.5).
    fn effects(&self) -> Vec<(usize, u32)> {
        use namespace::opcode::{DATASET_MANAGEMENT, FLUSH, READ, WRITE, WRITE_ZEROES};
        let mut effects: Vec<(usize, u32)> =
            opcode::ALL.iter().map(|&opcode| (usize::from(opcode), SUPPORTED)).collect();
        let mut io = |opcode: u8, effect| effects.push((IO_COMMANDS + usize::from(opcode), effect));
        io(FLUSH, SUPPORTED);
        io(READ, SUPPORTED);
        io(WRITE, SUPPORTED | CHANGES_BLOCKS);
        if !self.geometry.readonly {
            io(WRITE_ZEROES, SUPPORTED | CHANGES_BLOCKS);
        }
        if self.geometry.discard_granularity > 0 {
            io(DATASET_MANAGEMENT, SUPPORTED | CHANGES_BLOCKS);
        }
        effects
    }
}

/// The number and entries of an I/O queue that is to be created, checked against those there are.
fn new_queue<T>(queues: &[Option<T>], command: &Command) -> Result<(u16, u32), Status> {
    let (number, entries) = (command.dword(10) as u16, (command.dword(10) >> 16) + 1);
    if number == 0 || queues.get(usize::from(number)).is_none_or(Option::is_some) {
        return Err(Status::INVALID_QUEUE_ID);
    }
    if !(2..=MAX_ENTRIES).contains(&entries) {
        return Err(Status::INVALID_QUEUE_SIZE);
    }
    Ok((number, entries))
}

/// A new queue's place, checked.
fn place(live: &Live, shared: &Shared, command: &Command, entries: u32, entry: u64) -> Result<u64, Status> {
    // Contiguous queues only (CAP.CQR).
    if command.dword(11) & 1 == 0 {
        return Err(Status::INVALID_FIELD);
    }
    let [base, _] = command.prps();
    if base % live.page != 0 {
        return Err(Status::PRP_OFFSET);
    }
    if fits(&shared.memory, base, entries, entry) { Ok(base) } else { Err(Status::INVALID_FIELD) }
}

fn create_completion(live: &mut Live, shared: &Shared, command: &Command) -> Answer {
    let (number, entries) = new_queue(&live.completions, command)?;
    if !lock(&shared.registers).has_entry_sizes().1 {
        return Err(Status::INVALID_QUEUE_SIZE);
    }
    let (vector, interrupts) = ((command.dword(11) >> 16) as u16, command.dword(11) & 2 != 0);
    let vectors = if shared.msix.is_enabled() { shared.msix.vectors() } else { 1 };
    if vector >= vectors {
        return Err(Status::INVALID_VECTOR);
    }
    let base = place(live, shared, command, entries, COMPLETION)?;
    live.completions[usize::from(number)] = Some(Completion::new(base, entries, interrupts.then_some(vector)));
    live.features.queue_was_created();
    live.write_shadow(shared, number, Side::Completion, 0).map_err(|_| Status::DATA_TRANSFER)?;
    shared.doorbells.open(number, Side::Completion, entries, 0);
    if interrupts {
        shared.doorbells.post(number, 0);
    }
    Ok(0)
}

fn create_submission(live: &mut Live, shared: &Shared, command: &Command) -> Answer {
    let target = (command.dword(11) >> 16) as u16;
    if target == 0 || usize::from(target) >= live.completions.len() {
        return Err(Status::INVALID_QUEUE_ID);
    }
    if live.completions[usize::from(target)].is_none() {
        return Err(Status::CQ_INVALID);
    }
    let (number, entries) = new_queue(&live.submissions, command)?;
    if !lock(&shared.registers).has_entry_sizes().0 {
        return Err(Status::INVALID_QUEUE_SIZE);
    }
    let base = place(live, shared, command, entries, COMMAND)?;
    live.submissions[usize::from(number)] = Some(Submission::new(base, entries, target));
    live.features.queue_was_created();
    live.write_shadow(shared, number, Side::Submission, 0).map_err(|_| Status::DATA_TRANSFER)?;
    shared.doorbells.open(number, Side::Submission, entries, 0);
    if live.shadow.is_some() {
        shared.wire(live.io_queues());
    }
    Ok(0)
}

fn delete_completion(live: &mut Live, shared: &Shared, command: &Command) -> Answer {
    let number = command.dword(10) as u16;
    if number == 0 || live.completions.get(usize::from(number)).is_none_or(Option::is_none) {
        return Err(Status::INVALID_QUEUE_ID);
    }
    if live.submissions.iter().flatten().any(|submission| submission.completion == number) {
        return Err(Status::INVALID_QUEUE_DELETION);
    }
    live.completions[usize::from(number)] = None;
    shared.doorbells.close(number, Side::Completion);
    shared.drive_line();
    Ok(0)
}

/// Completes when all commands that were taken from the queue have; those that were not taken are gone (§5.6).
fn delete_submission(live: &mut Live, shared: &Shared, command: &Command) -> Outcome {
    let number = command.dword(10) as u16;
    let submission = live.submissions.get_mut(usize::from(number)).and_then(Option::as_mut);
    let Some(submission) = submission.filter(|s| number != 0 && s.deleted_by.is_none()) else {
        return Outcome::Done(Err(Status::INVALID_QUEUE_ID));
    };
    submission.deleted_by = Some(command.id());
    if submission.in_flight == 0 {
        // Its own completion is in a queue that is in RAM.
        let _ = live.finish_deletion(shared, number);
        if live.shadow.is_some() {
            shared.wire(live.io_queues());
        }
    }
    Outcome::Waits
}

/// Aborts an event request; what is at the disk can't be called back (§5.1). Bit 0 of the answer: nothing was aborted.
fn abort(live: &mut Live, shared: &Shared, command: &Command) -> Answer {
    let (queue, id) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
    let waiting = live.event_requests.iter().position(|&request| queue == 0 && request == id);
    match waiting {
        // The abort itself has room; the request needs an entry more.
        Some(at) if live.has_room(shared, 0) == Ok(true) => {
            live.event_requests.remove(at);
            let _ = live.answer(shared, id, Err(Status::ABORT_REQUESTED));
            Ok(0)
        }
        _ => Ok(1),
    }
}

/// Doorbell Buffer Config (§5.7): from now on the driver writes I/O doorbells to memory, and rings only where an event
/// index asks for it. A ring then needs no trip through a vCPU's thread.
fn set_shadow(live: &mut Live, shared: &Shared, command: &Command) -> Answer {
    let [doorbells, events] = command.prps();
    let fits = |base: u64| {
        base.is_multiple_of(live.page) && shared.memory.check(GuestAddress(base), live.page as usize).is_ok()
    };
    if !fits(doorbells) || !fits(events) || doorbells == events {
        return Err(Status::INVALID_FIELD);
    }
    // A pin's level follows the completion doorbells, which a driver with shadows does not always write.
    if !shared.msix.is_enabled() {
        return Err(Status::SEQUENCE);
    }
    live.shadow = Some(Shadow { doorbells, events });
    for number in 1..live.submissions.len() as u16 {
        for (side, exists) in [
            (Side::Submission, live.submissions[usize::from(number)].is_some()),
            (Side::Completion, live.completions[usize::from(number)].is_some()),
        ] {
            if exists {
                let value = shared.doorbells.value(number, side);
                live.write_shadow(shared, number, side, value).map_err(|_| Status::DATA_TRANSFER)?;
            }
        }
    }
    shared.wire(live.io_queues());
    Ok(0)
}
