//! What a checkpoint keeps of a controller, and how it is taken apart and put together again.

use serde::{Deserialize, Serialize};

use super::Shared;
use super::controller::{Controller, Live, Shadow};
use super::doorbells::Side;
use super::features::{Features, FeaturesState};
use super::identify::MAX_EVENT_REQUESTS;
use super::log::{Log, LogState};
use super::queues::{Command, Completion, CompletionState, Submission, SubmissionState};
use super::registers::RegistersState;
use crate::base::{GuestAddress, SavedState};
use crate::pci::{ConfigState, MsixState};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeState {
    pub(super) pci: ConfigState,
    pub(super) msix: MsixState,
    pub(super) registers: RegistersState,
    pub(super) controller: ControllerState,
}

impl SavedState for NvmeState {
    const VERSION: u32 = 1;
}

/// What is behind the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ControllerState {
    /// What the disk must be again: bytes, and whether it is read-only.
    size: u64,
    readonly: bool,
    log: LogState,
    /// Commands that found the host full, with their queues.
    again: Vec<(u16, [u32; 16])>,
    pub(super) live: Option<LiveState>,
}

/// What there is while the controller is enabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LiveState {
    page: u64,
    features: FeaturesState,
    submissions: Vec<Option<SubmissionState>>,
    completions: Vec<Option<CompletionState>>,
    event_requests: Vec<u16>,
    shadow: Option<[u64; 2]>,
}

impl Controller {
    /// What a checkpoint keeps. Nothing is in flight.
    pub fn save(&self, shared: &Shared) -> ControllerState {
        ControllerState {
            size: self.geometry.size,
            readonly: self.geometry.readonly,
            log: self.log.save(),
            again: self.again.iter().map(|(queue, command)| (*queue, command.words())).collect(),
            live: self.live.as_ref().map(|live| live.save(shared)),
        }
    }

    /// Takes over a state, or says why it is none of this controller's.
    pub fn restore(&mut self, shared: &Shared, state: &ControllerState) -> Result<(), String> {
        let ControllerState { size, readonly, log, again, live } = state;
        if (*size, *readonly) != (self.geometry.size, self.geometry.readonly) {
            return Err(format!("its disk had {size} bytes, this one has {}", self.geometry.size));
        }
        let log = Log::restore(log).ok_or("its logs are no controller's")?;
        let mut live = match live {
            Some(live) => Some(Live::restore(live, shared, self.pairs).ok_or("its queues are no controller's")?),
            None => None,
        };
        for (queue, _) in again {
            let promised = live.as_mut().and_then(|live| live.promise(*queue));
            promised.ok_or("a command to be done again has no queue")?;
        }
        self.stop(shared);
        self.log = log;
        self.again = again.iter().map(|(queue, words)| (*queue, Command::from_words(*words))).collect();
        if let (Some(live), Some(state)) = (&live, &state.live) {
            live.open_doorbells(shared, state);
        }
        self.live = live;
        Ok(())
    }
}

impl Live {
    fn save(&self, shared: &Shared) -> LiveState {
        let Live { page, features, submissions, completions, event_requests, shadow } = self;
        let value = |queue: u16, side| shared.doorbells.value(queue, side);
        let submission = |(number, queue): (u16, &Option<Submission>)| {
            queue.as_ref().map(|queue| queue.save(value(number, Side::Submission)))
        };
        let completion = |(number, queue): (u16, &Option<Completion>)| {
            queue.as_ref().map(|queue| queue.save(value(number, Side::Completion)))
        };
        LiveState {
            page: *page,
            features: features.save(),
            submissions: (0u16..).zip(submissions).map(submission).collect(),
            completions: (0u16..).zip(completions).map(completion).collect(),
            event_requests: event_requests.iter().copied().collect(),
            shadow: shadow.map(|Shadow { doorbells, events }| [doorbells, events]),
        }
    }

    /// The live part of a state, if it can be a controller's with so many queue pairs.
    fn restore(state: &LiveState, shared: &Shared, pairs: u16) -> Option<Live> {
        let LiveState { page, features, submissions, completions, event_requests, shadow } = state;
        let memory = &shared.memory;
        let counts = [submissions.len(), completions.len()];
        let plausible = counts == [usize::from(pairs); 2]
            && (4096..=65536).contains(page)
            && page.is_power_of_two()
            && event_requests.len() <= MAX_EVENT_REQUESTS;
        if !plausible {
            return None;
        }
        let mut live = Live::new(*page, pairs);
        live.features = Features::restore(features, pairs)?;
        for (to, from) in live.completions.iter_mut().zip(completions) {
            if let Some(from) = from {
                let queue = Completion::restore(from, memory)?;
                *to = Some(queue).filter(|queue| queue.vector.is_none_or(|vector| vector < shared.msix.vectors()));
                to.as_ref()?;
            }
        }
        for (number, (to, from)) in live.submissions.iter_mut().zip(submissions).enumerate() {
            if let Some(from) = from {
                let queue = Submission::restore(from, memory)?;
                let target = usize::from(queue.completion);
                // The admin queue completes in the admin's, and no other does.
                if (target == 0) != (number == 0) || live.completions.get(target)?.is_none() {
                    return None;
                }
                *to = Some(queue);
            }
        }
        live.submissions.first()?.as_ref()?;
        live.event_requests.extend(event_requests);
        if let Some([doorbells, events]) = *shadow {
            for base in [doorbells, events] {
                let fits = base.is_multiple_of(*page) && memory.check(GuestAddress(base), *page as usize).is_ok();
                fits.then_some(())?;
            }
            live.shadow = Some(Shadow { doorbells, events });
        }
        Some(live)
    }

    fn open_doorbells(&self, shared: &Shared, state: &LiveState) {
        for (number, queue) in (0u16..).zip(&state.submissions) {
            if let (Some(queue), Some(Some(live))) = (queue, self.submissions.get(usize::from(number))) {
                shared.doorbells.open(number, Side::Submission, live.entries, queue.tail);
            }
        }
        for (number, queue) in (0u16..).zip(&state.completions) {
            if let (Some(queue), Some(Some(live))) = (queue, self.completions.get(usize::from(number))) {
                shared.doorbells.open(number, Side::Completion, live.entries, queue.head);
                if live.vector.is_some() {
                    shared.doorbells.post(number, live.tail);
                }
            }
        }
        if self.shadow.is_some() {
            shared.wire(self.io_queues());
        }
    }
}
