//! The states of a machine and the table of what leads from one to another.

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifecycle {
    /// Built, no CPU has run yet.
    Created,
    /// The CPUs run.
    Running,
    /// The CPUs and devices are stopped and can go on.
    Paused,
    /// Over: the guest powered off, the plug was pulled, or it failed.
    Stopped,
}

/// What can happen to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The first start.
    Start,
    /// It is as a checkpoint has it, and waits: whoever restored it says when it goes on.
    Restore,
    /// CPUs and devices stop.
    Pause,
    /// They go on.
    Resume,
    /// The machine is reset; its state stays what it is.
    Reset,
    /// The machine ends.
    Stop,
}

impl Lifecycle {
    /// The state after `transition`, or `None` where it makes no sense.
    pub fn after(self, transition: Transition) -> Option<Lifecycle> {
        use Lifecycle::{Created, Paused, Running, Stopped};
        use Transition as T;
        match (self, transition) {
            (Created, T::Start) => Some(Running),
            (Created, T::Restore) | (Running, T::Pause) => Some(Paused),
            (Paused, T::Resume) => Some(Running),
            (Running | Paused, T::Reset) => Some(self),
            (Created | Running | Paused, T::Stop) => Some(Stopped),
            _ => None,
        }
    }

    /// The word a person reads.
    pub fn word(self) -> &'static str {
        match self {
            Lifecycle::Created => "starting",
            Lifecycle::Running => "running",
            Lifecycle::Paused => "paused",
            Lifecycle::Stopped => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Lifecycle::{Created, Paused, Running, Stopped};
    use super::*;

    #[test]
    fn nothing_leads_out_of_stopped_and_pause_needs_running() {
        let all = [Transition::Start, Transition::Pause, Transition::Resume, Transition::Reset, Transition::Stop];
        assert!(all.iter().all(|&t| Stopped.after(t).is_none()));
        assert_eq!(Created.after(Transition::Pause), None);
        assert_eq!(Running.after(Transition::Pause), Some(Paused));
        assert_eq!(Paused.after(Transition::Resume), Some(Running));
        assert_eq!(Paused.after(Transition::Reset), Some(Paused));
    }
}
