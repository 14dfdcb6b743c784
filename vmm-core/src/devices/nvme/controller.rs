//! The controller behind its registers: takes commands from the submission queues, runs them on the disk, completes
//! each once (NVM Express base 1.4 §4, §7). It runs on one thread and never waits for the disk but when it stops.

use std::collections::VecDeque;

use super::doorbells::{BadWrite, Side};
use super::features::Features;
use super::log::{Event, Log};
use super::namespace::{self, Plan};
use super::queues::{COMMAND, COMPLETION, Command, Completion, Entry, Submission, fits};
use super::registers::{Setup, Wish};
use super::status::Status;
use super::{Shared, lock};
use crate::backend::disk::{Complaints, Disk, DiskError, Geometry};
use crate::base::{GuestAddress, MemoryError};

/// Requests at the disk at once; what a command adds to the last one may exceed it.
const MAX_IN_FLIGHT: usize = 1024;
/// Commands of one queue in a row.
const BURST: usize = 16;
/// Rounds over all queues before the thread looks at its other duties.
const MAX_ROUNDS: usize = 64;

/// The shadow doorbells and their event indexes in guest memory (§5.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shadow {
    /// Laid out as the doorbell registers.
    pub doorbells: u64,
    /// The same layout: the doorbell value after which the register must be written.
    pub events: u64,
}

impl Shadow {
    fn at(base: u64, queue: u16, side: Side) -> GuestAddress {
        GuestAddress(base + 8 * u64::from(queue) + 4 * side as u64)
    }
}

/// What there is while the controller is enabled.
pub(super) struct Live {
    /// Bytes in a memory page.
    pub page: u64,
    pub features: Features,
    /// By number; the admin's is 0.
    pub submissions: Vec<Option<Submission>>,
    pub completions: Vec<Option<Completion>>,
    /// Event requests that wait for an event.
    pub event_requests: VecDeque<u16>,
    pub shadow: Option<Shadow>,
}

/// A command at the disk.
struct Pending {
    queue: u16,
    command: Command,
    status: Status,
    /// A part found the host full: all of it is to be done again.
    full: bool,
    /// Answers of the disk still to come.
    parts: usize,
    counts: Option<(bool, u64)>,
    block: u64,
}

/// How far a command got at once.
pub(super) enum Outcome {
    /// It is over, with this answer.
    Done(Result<u32, Status>),
    /// The disk has to do something first.
    Disk(Plan),
    /// It is completed by what happens later.
    Waits,
}

/// See the module.
pub(super) struct Controller {
    pub serial: String,
    pub geometry: Geometry,
    /// Queue pairs, the admin's included.
    pub pairs: u16,
    pub log: Log,
    pub live: Option<Live>,
    disk: Box<dyn Disk>,
    /// By slot, which is the token that the disk gets.
    in_flight: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Requests at the disk.
    parts: usize,
    /// The queue whose turn is next.
    turn: usize,
    complaints: Complaints,
    /// Commands that found the host full, with their queues. The room for their completions stays promised.
    pub again: Vec<(u16, Command)>,
    /// The host was full: nothing is taken until the machine was paused and goes on.
    stalled: bool,
}

impl Controller {
    /// A disabled controller.
    pub fn new(disk: Box<dyn Disk>, serial: String, pairs: u16) -> Controller {
        Controller {
            serial,
            geometry: disk.geometry(),
            pairs,
            log: Log::default(),
            live: None,
            disk,
            in_flight: Vec::new(),
            free: Vec::new(),
            parts: 0,
            turn: 0,
            complaints: Complaints::default(),
            again: Vec::new(),
            stalled: false,
        }
    }

    /// The disk's event.
    pub fn event(&self) -> std::os::fd::RawFd {
        self.disk.event()
    }

    /// Does all there is to do now. True: there is more, after others had their turn.
    pub fn work(&mut self, shared: &Shared) -> bool {
        let retried = self.retry(shared);
        self.obey(shared);
        let mut rounds = 0;
        let worked = loop {
            if let Err(error) = retried {
                break Err(error);
            }
            match self.round(shared) {
                Ok(true) if rounds < MAX_ROUNDS => rounds += 1,
                other => break other,
            }
        };
        let worked = worked.and_then(|more| self.report_events(shared).and(Ok(more)));
        if worked.is_err() {
            // Queues are checked to be in RAM when they are made, so this is unreachable by a guest.
            lock(&shared.registers).failed();
        }
        self.announce(shared);
        worked == Ok(true)
    }

    /// Takes commands, and completes what is over. True: something moved.
    fn round(&mut self, shared: &Shared) -> Result<bool, MemoryError> {
        let reaped = self.reap(shared)?;
        let fetched = self.fetch(shared)?;
        self.disk.kick();
        // What the host has in its cache is done already.
        let done = self.reap(shared)?;
        self.announce(shared);
        Ok(reaped || fetched || done)
    }

    /// The machine goes on: what found the host full is tried again.
    pub fn resume(&mut self) {
        self.stalled = false;
    }

    fn retry(&mut self, shared: &Shared) -> Result<(), MemoryError> {
        if self.stalled {
            return Ok(());
        }
        let again = std::mem::take(&mut self.again);
        again.into_iter().try_for_each(|(queue, command)| self.start(shared, queue, command))
    }

    /// Takes nothing more, and has the machine paused: there will be room again, and no guest should see its writes fail
    /// until then.
    fn stall(&mut self, shared: &Shared) {
        if !std::mem::replace(&mut self.stalled, true) {
            (shared.stalls)(&shared.name, format!("{}; free some, then resume the machine", DiskError::Full));
        }
    }

    /// Does what the registers ask for.
    fn obey(&mut self, shared: &Shared) {
        loop {
            let wish = lock(&shared.registers).wish();
            match wish {
                None => return,
                Some(Wish::Reset) => {
                    self.stop(shared);
                    lock(&shared.registers).was_reset();
                }
                Some(Wish::Shutdown) => {
                    self.pause(shared);
                    if !self.again.is_empty() {
                        // Not before the host has room for what was written.
                        return;
                    }
                    self.flush(shared);
                    lock(&shared.registers).has_shut_down();
                }
                Some(Wish::Enable(setup)) => {
                    let live = setup.and_then(|setup| self.enable(shared, setup));
                    let mut registers = lock(&shared.registers);
                    match live {
                        Some(live) => {
                            self.live = Some(live);
                            registers.is_ready();
                        }
                        None => registers.failed(),
                    }
                }
            }
        }
    }

    fn enable(&self, shared: &Shared, setup: Setup) -> Option<Live> {
        let Setup { page, submission, completion } = setup;
        let fit = fits(&shared.memory, submission.0, submission.1, COMMAND)
            && fits(&shared.memory, completion.0, completion.1, COMPLETION);
        if !fit {
            return None;
        }
        let mut live = Live::new(page, self.pairs);
        live.submissions[0] = Some(Submission::new(submission.0, submission.1, 0));
        live.completions[0] = Some(Completion::new(completion.0, completion.1, Some(0)));
        shared.doorbells.open(0, Side::Submission, submission.1, 0);
        shared.doorbells.open(0, Side::Completion, completion.1, 0);
        shared.doorbells.post(0, 0);
        Some(live)
    }

    /// Ends everything that is in flight, and forgets all queues without completing anything more.
    pub fn stop(&mut self, shared: &Shared) {
        self.disk.drain();
        while self.disk.completed().is_some() {}
        self.in_flight.clear();
        self.free.clear();
        self.parts = 0;
        self.again.clear();
        self.stalled = false;
        self.live = None;
        self.log.forget_events();
        shared.doorbells.reset();
        shared.wire(Vec::new());
        shared.drive_line();
    }

    /// Nothing runs any more: what was in flight has ended, and the driver was told.
    pub fn pause(&mut self, shared: &Shared) {
        self.quiesce(shared);
        self.announce(shared);
    }

    /// Waits for everything that is in flight and completes it.
    fn quiesce(&mut self, shared: &Shared) {
        self.disk.drain();
        if self.reap(shared).is_err() {
            lock(&shared.registers).failed();
        }
    }

    /// Brings everything written to stable storage, and waits for that; nothing is in flight.
    fn flush(&mut self, shared: &Shared) {
        if self.geometry.readonly {
            return;
        }
        self.disk.submit(u64::MAX, crate::backend::disk::Request::Flush);
        self.disk.drain();
        while let Some(completion) = self.disk.completed() {
            if let Err(error) = completion.result {
                self.complain(&error, shared);
            }
        }
    }

    /// Takes a burst of commands from each queue in turn. True: there were some.
    fn fetch(&mut self, shared: &Shared) -> Result<bool, MemoryError> {
        if self.stalled || !lock(&shared.registers).takes_commands() {
            return Ok(false);
        }
        let mut any = false;
        let queues = usize::from(self.pairs);
        for _ in 0..queues {
            let queue = self.turn as u16;
            self.turn = (self.turn + 1) % queues;
            for _ in 0..BURST {
                if self.parts >= MAX_IN_FLIGHT {
                    return Ok(any);
                }
                let Some(command) = self.next(shared, queue)? else { break };
                any = true;
                self.start(shared, queue, command)?;
            }
        }
        Ok(any)
    }

    /// A queue's next command, if there is one and room for its completion.
    fn next(&mut self, shared: &Shared, queue: u16) -> Result<Option<Command>, MemoryError> {
        let Some(live) = &mut self.live else { return Ok(None) };
        let Some((tail, shadow)) = live.tail(shared, queue)? else { return Ok(None) };
        let head = live.submissions[usize::from(queue)].as_ref().map_or(tail, |q| q.head);
        if head == tail {
            // The driver need not ring before it goes on from here. What it added meanwhile is seen at once.
            let Some(shadow) = shadow else { return Ok(None) };
            shared.memory.store_u32(Shadow::at(shadow.events, queue, Side::Submission), tail)?;
            crate::base::GuestMemory::full_fence();
            if live.tail(shared, queue)?.is_none_or(|(now, _)| now == tail) {
                return Ok(None);
            }
        }
        let Some(target) = live.submissions[usize::from(queue)].as_ref().map(|q| q.completion) else {
            return Ok(None);
        };
        if !live.has_room(shared, target)? {
            return Ok(None);
        }
        let (Some(submission), Some(completion)) =
            (&mut live.submissions[usize::from(queue)], &mut live.completions[usize::from(target)])
        else {
            return Ok(None);
        };
        completion.promised += 1;
        submission.take(&shared.memory).map(Some)
    }

    fn start(&mut self, shared: &Shared, queue: u16, command: Command) -> Result<(), MemoryError> {
        let outcome = if queue == 0 { self.admin(shared, &command) } else { self.io(shared, &command) };
        match outcome {
            Outcome::Waits => Ok(()),
            Outcome::Disk(plan) if !plan.requests.is_empty() => {
                self.submit(queue, &command, plan);
                Ok(())
            }
            Outcome::Disk(_) => self.complete(shared, queue, command.id(), Ok(0)),
            Outcome::Done(result) => self.complete(shared, queue, command.id(), result),
        }
    }

    fn io(&self, shared: &Shared, command: &Command) -> Outcome {
        let Some(live) = &self.live else { return Outcome::Waits };
        let durable = !live.features.caches_writes();
        match namespace::plan(&shared.memory, live.page, &self.geometry, command, durable) {
            Ok(plan) => Outcome::Disk(plan),
            Err(status) => Outcome::Done(Err(status)),
        }
    }

    fn submit(&mut self, queue: u16, command: &Command, plan: Plan) {
        let Plan { requests, counts, block } = plan;
        let parts = requests.len();
        let status = Status::SUCCESS;
        let pending = Pending { queue, command: *command, status, full: false, parts, counts, block };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        self.in_flight[slot] = Some(pending);
        self.parts += parts;
        for request in requests {
            self.disk.submit(slot as u64, request);
        }
    }

    /// Completes the commands of all that the disk has finished. True: there were some.
    fn reap(&mut self, shared: &Shared) -> Result<bool, MemoryError> {
        let mut any = false;
        while let Some(completion) = self.disk.completed() {
            any = true;
            let slot = completion.token as usize;
            let Some(entry) = self.in_flight.get_mut(slot) else { continue };
            let Some(pending) = entry else { continue };
            self.parts -= 1;
            pending.parts -= 1;
            match &completion.result {
                Err(DiskError::Full) => pending.full = true,
                Err(error) => pending.status = status_of(error, pending.command.opcode()),
                Ok(()) => {}
            }
            let over = entry.take_if(|p| p.parts == 0);
            match &completion.result {
                Err(DiskError::Full) => self.stall(shared),
                Err(error) => self.complain(error, shared),
                Ok(()) => {}
            }
            let Some(pending) = over else { continue };
            self.free.push(slot);
            let Pending { queue, command, status, full, parts: _, counts, block } = pending;
            if full {
                self.again.push((queue, command));
                continue;
            }
            let command = command.id();
            if status != Status::SUCCESS {
                self.log.media_error(queue, command, status, block);
                self.complete(shared, queue, command, Err(status))?;
                continue;
            }
            if let Some((writes, sectors)) = counts {
                self.log.count(writes, sectors);
            }
            self.complete(shared, queue, command, Ok(0))?;
        }
        Ok(any)
    }

    /// Writes a command's completion, for which there is room, and what follows from it.
    fn complete(
        &mut self,
        shared: &Shared,
        queue: u16,
        id: u16,
        result: Result<u32, Status>,
    ) -> Result<(), MemoryError> {
        let Some(live) = &mut self.live else { return Ok(()) };
        live.complete(shared, queue, id, result)?;
        live.finish_deletion(shared, queue)?;
        if live.shadow.is_some() && live.submissions[usize::from(queue)].is_none() {
            shared.wire(live.io_queues());
        }
        Ok(())
    }

    /// Completes event requests for which something has happened.
    fn report_events(&mut self, shared: &Shared) -> Result<(), MemoryError> {
        for wrong in shared.doorbells.take_wrong() {
            self.log.notice(Event::Doorbell(wrong));
        }
        let Some(live) = &mut self.live else {
            self.log.forget_events();
            return Ok(());
        };
        while !live.event_requests.is_empty() && self.log.has_event() && live.has_room(shared, 0)? {
            if let (Some(id), Some(event)) = (live.event_requests.pop_front(), self.log.take_event()) {
                live.answer(shared, id, Ok(event.answer()))?;
            }
        }
        Ok(())
    }

    /// Interrupts for every completion queue with something new.
    fn announce(&mut self, shared: &Shared) {
        let Some(live) = &mut self.live else { return };
        let mut any = false;
        for (queue, completion) in (0u16..).zip(&mut live.completions) {
            let Some(completion) = completion else { continue };
            if !std::mem::take(&mut completion.news) {
                continue;
            }
            any = true;
            shared.doorbells.post(queue, completion.tail);
            if let Some(vector) = completion.vector {
                shared.message(vector);
            }
        }
        if any {
            shared.drive_line();
        }
    }

    /// Tells the person of the host's failure, once for each reason in a row.
    fn complain(&mut self, error: &DiskError, shared: &Shared) {
        if let Some(complaint) = self.complaints.about(error) {
            (shared.problems)(&shared.name, complaint);
        }
    }

    /// Back to power-on; nothing is in flight.
    pub fn reset(&mut self, shared: &Shared) {
        self.stop(shared);
        self.log = Log::default();
        self.turn = 0;
        self.complaints.reset();
    }
}

impl Live {
    /// Enabled, with no queues yet.
    pub fn new(page: u64, pairs: u16) -> Live {
        Live {
            page,
            features: Features::new(pairs),
            submissions: vec![None; usize::from(pairs)],
            completions: vec![None; usize::from(pairs)],
            event_requests: VecDeque::new(),
            shadow: None,
        }
    }

    /// The shadow of a queue: the admin queues have none.
    fn shadow_of(&self, queue: u16) -> Option<Shadow> {
        self.shadow.filter(|_| queue != 0)
    }

    /// How far the driver has filled a submission queue that takes commands, and where its shadow is.
    fn tail(&self, shared: &Shared, queue: u16) -> Result<Option<(u32, Option<Shadow>)>, MemoryError> {
        let submission = self.submissions.get(usize::from(queue)).and_then(Option::as_ref);
        let Some(submission) = submission.filter(|s| s.deleted_by.is_none()) else { return Ok(None) };
        let shadow = self.shadow_of(queue);
        let tail = match shadow {
            Some(shadow) => shared.memory.load_u32(Shadow::at(shadow.doorbells, queue, Side::Submission))?,
            None => shared.doorbells.value(queue, Side::Submission),
        };
        if tail >= submission.entries {
            // Of a shadow, or of a doorbell that was written while its queue was made anew.
            shared.doorbells.complain(BadWrite::Value);
            return Ok(None);
        }
        Ok(Some((tail, shadow)))
    }

    /// Whether a completion queue has room for one entry more; if not, the driver's next step wakes the thread.
    pub fn has_room(&self, shared: &Shared, queue: u16) -> Result<bool, MemoryError> {
        let Some(completion) = self.completions.get(usize::from(queue)).and_then(Option::as_ref) else {
            return Ok(false);
        };
        let shadow = self.shadow_of(queue);
        let head = || match shadow {
            Some(shadow) => shared.memory.load_u32(Shadow::at(shadow.doorbells, queue, Side::Completion)),
            None => Ok(shared.doorbells.value(queue, Side::Completion)),
        };
        let now = head()?;
        if completion.room(now) > 0 {
            return Ok(true);
        }
        if let Some(shadow) = shadow {
            shared.memory.store_u32(Shadow::at(shadow.events, queue, Side::Completion), now)?;
            crate::base::GuestMemory::full_fence();
        }
        shared.doorbells.wait_for_room();
        Ok(completion.room(head()?) > 0)
    }

    /// Promises room for the completion of a command that was taken before; `None`: there is none.
    pub fn promise(&mut self, queue: u16) -> Option<()> {
        let submission = self.submissions.get_mut(usize::from(queue))?.as_mut()?;
        let completion = self.completions.get_mut(usize::from(submission.completion))?.as_mut()?;
        if completion.promised + 1 >= completion.entries {
            return None;
        }
        submission.in_flight += 1;
        completion.promised += 1;
        Some(())
    }

    /// Gives back the room that was promised to a command of the admin queue: its completion is not bound to come.
    pub fn release(&mut self) {
        if let (Some(submission), Some(completion)) = (&mut self.submissions[0], &mut self.completions[0]) {
            submission.in_flight = submission.in_flight.saturating_sub(1);
            completion.promised = completion.promised.saturating_sub(1);
        }
    }

    /// Completes a command that has released its room.
    pub fn answer(&mut self, shared: &Shared, id: u16, result: Result<u32, Status>) -> Result<(), MemoryError> {
        if let (Some(submission), Some(completion)) = (&mut self.submissions[0], &mut self.completions[0]) {
            submission.in_flight += 1;
            completion.promised += 1;
        }
        self.complete(shared, 0, id, result)
    }

    fn complete(
        &mut self,
        shared: &Shared,
        queue: u16,
        id: u16,
        result: Result<u32, Status>,
    ) -> Result<(), MemoryError> {
        let Some(Some(submission)) = self.submissions.get_mut(usize::from(queue)) else { return Ok(()) };
        submission.in_flight = submission.in_flight.saturating_sub(1);
        let Some(Some(completion)) = self.completions.get_mut(usize::from(submission.completion)) else {
            return Ok(());
        };
        completion.promised = completion.promised.saturating_sub(1);
        let (answer, status) = match result {
            Ok(answer) => (answer, Status::SUCCESS),
            Err(status) => (0, status),
        };
        completion.post(&shared.memory, &Entry { answer, head: submission.head, queue, id, status })
    }

    /// Ends the deletion of a submission queue once none of its commands is in flight.
    pub fn finish_deletion(&mut self, shared: &Shared, queue: u16) -> Result<(), MemoryError> {
        let Some(submission) = self.submissions.get_mut(usize::from(queue)) else { return Ok(()) };
        let over = submission.take_if(|s| s.deleted_by.is_some() && s.in_flight == 0);
        let Some(id) = over.and_then(|s| s.deleted_by) else { return Ok(()) };
        shared.doorbells.close(queue, Side::Submission);
        self.complete(shared, 0, id, Ok(0))
    }

    /// Zeroes a queue's shadow doorbell and event index, or sets them to where the queue is.
    pub fn write_shadow(&self, shared: &Shared, queue: u16, side: Side, value: u32) -> Result<(), MemoryError> {
        let Some(shadow) = self.shadow_of(queue) else { return Ok(()) };
        shared.memory.store_u32(Shadow::at(shadow.doorbells, queue, side), value)?;
        shared.memory.store_u32(Shadow::at(shadow.events, queue, side), value)
    }

    /// The numbers of the I/O submission queues.
    pub fn io_queues(&self) -> Vec<u16> {
        (0u16..).zip(&self.submissions).skip(1).filter(|(_, queue)| queue.is_some()).map(|(number, _)| number).collect()
    }
}

/// What a guest is told of a failure on the host.
fn status_of(error: &DiskError, opcode: u8) -> Status {
    match error {
        DiskError::ReadOnly => Status::WRITE_PROTECTED,
        DiskError::OutOfRange => Status::INTERNAL,
        _ if opcode == namespace::opcode::READ => Status::UNRECOVERED_READ,
        _ => Status::WRITE_FAULT,
    }
}
