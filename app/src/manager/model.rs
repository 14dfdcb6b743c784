//! What the manager shows: plain data that the workers replace and the views read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use egui::Color32;
use vmm_core::config::VmConfig;

use super::action::Request;
use super::tree::{self, Row};
use crate::jobs::Job;
use crate::library::{HostLimits, Timeline, size::human};
use crate::theme::{Shape, Tokens};

/// Everything that the workers know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    /// The virtual machines, in the library's order. `None` until they have been read for the first time.
    pub machines: Option<Vec<Machine>>,
    /// The folder that the machines are kept in.
    pub library: PathBuf,
    /// Why it can't be read.
    pub library_failure: Option<Failure>,
    /// What the host can give.
    pub host: Option<HostLimits>,
    /// What keeps machines from running here, and what to do about it. Only checks that failed.
    pub checks: Vec<Check>,
    /// The end of the selected machine's log.
    pub log: Log,
    /// The selected machine's snapshots; `None` until they have been read.
    pub snapshots: Option<Snapshots>,
    /// What takes time: what goes on, and what has ended.
    pub jobs: Vec<Job>,
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// What it is called. No two have the same.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// What it is doing.
    pub state: State,
    /// What it consists of; or, when its file can't be understood, what is wrong with it.
    pub config: Result<VmConfig, String>,
    /// Its hard disks as they are on the host, in the order of the configuration.
    pub disks: Vec<DiskFacts>,
    /// It runs without a window.
    pub headless: bool,
    /// What happens in it is gone when it ends.
    pub without_saving: bool,
    /// The media in its drives, as they are while it runs.
    pub drives: Option<Vec<Option<PathBuf>>>,
    /// What went wrong while it ran, the last thing.
    pub problem: Option<String>,
    /// It has a timeline: what is lost is kept there first.
    pub has_timeline: bool,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Stopped,
    /// Nothing; it goes on where it was when it is started.
    Suspended,
    /// On the way to running.
    Starting,
    /// It runs.
    Running,
    /// Its CPUs are stopped.
    Paused,
    /// Its process runs and does not answer.
    Unresponsive,
    /// Its file can't be understood.
    Broken,
}

impl State {
    /// The word that a person reads.
    pub fn word(self) -> &'static str {
        match self {
            State::Stopped => "Stopped",
            State::Suspended => "Suspended",
            State::Starting => "Starting",
            State::Running => "Running",
            State::Paused => "Paused",
            State::Unresponsive => "Not responding",
            State::Broken => "Needs attention",
        }
    }

    /// The sign beside the word.
    pub fn shape(self) -> Shape {
        match self {
            State::Stopped => Shape::Square,
            State::Suspended => Shape::Moon,
            State::Starting => Shape::Spinner,
            State::Running => Shape::Triangle,
            State::Paused => Shape::Bars,
            State::Unresponsive | State::Broken => Shape::Warning,
        }
    }

    /// The colour of both.
    pub fn color(self, t: &Tokens) -> Color32 {
        match self {
            State::Stopped | State::Starting => t.stopped,
            State::Running => t.running,
            State::Suspended => t.suspended,
            State::Paused => t.paused,
            State::Unresponsive | State::Broken => t.error,
        }
    }

    /// A process of its own holds it.
    pub fn is_alive(self) -> bool {
        !matches!(self, State::Stopped | State::Suspended | State::Broken)
    }

    /// It has a screen that can be shown.
    pub fn has_picture(self) -> bool {
        matches!(self, State::Running | State::Paused)
    }
}

/// A hard disk as it is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// The image.
    pub path: PathBuf,
    /// How large it is; or why that can't be told.
    pub sizes: Result<DiskSizes, String>,
}

/// How large a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSizes {
    /// The name of its image's format.
    pub format: &'static str,
    /// What the guest sees, bytes.
    pub guest: u64,
    /// What its own image takes on the host, bytes.
    pub host: u64,
    /// What the images take that it stands on: its snapshots, and other machines perhaps, have them as well.
    pub shared: u64,
}

impl DiskSizes {
    /// The same in words.
    pub fn words(&self) -> String {
        let DiskSizes { format, guest, host, shared } = self;
        let shared = match shared {
            0 => String::new(),
            shared => format!(", and {} that it shares with snapshots", human(*shared)),
        };
        format!("{} ({format}), {} on this host{shared}", human(*guest), human(*host))
    }
}

/// A disk image that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// How large it is.
    pub sizes: DiskSizes,
    /// A machine can use it as it is.
    pub is_usable: bool,
    /// The images that it stands on.
    pub below: Vec<PathBuf>,
    /// What is wrong with it, each in a sentence.
    pub problems: Vec<String>,
}

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// What is wrong and why.
    pub cause: String,
    /// What to do, in words.
    pub remedy: String,
    /// A command that mends it.
    pub command: Option<String>,
    /// Nothing runs until it is mended; otherwise it is only a warning.
    pub fatal: bool,
}

/// Something that failed, for the error area.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What failed.
    pub what: String,
    /// Why.
    pub cause: String,
    /// What to do next.
    pub next: Option<String>,
    /// What a button offers to do next.
    pub offer: Option<Box<Offer>>,
}

/// What can be done about something that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What the button says.
    pub label: &'static str,
    /// What it asks for.
    pub request: Request,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Log {
    /// Whose.
    pub name: String,
    /// The files, by name, each with its last lines.
    pub files: BTreeMap<String, String>,
}

/// A machine's snapshots.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshots {
    /// Whose.
    pub machine: String,
    /// All, the oldest first; or why they can't be read.
    pub all: Result<Vec<Snapshot>, Failure>,
    /// The checkpoints of its timeline, the oldest first.
    pub timeline: Vec<Snapshot>,
    /// How that is kept, if it is.
    pub plan: Option<Timeline>,
    /// As they are shown.
    pub rows: Vec<Row>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name for programs.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What was written of it.
    pub note: String,
    /// When it was taken, as a person reads it.
    pub taken: String,
    /// What it came after.
    pub parent: Option<String>,
    /// The machine ran: it goes on from there. Otherwise it was off.
    pub running: bool,
    /// What its own files take on the host, bytes.
    pub size: u64,
    /// The present stands on it.
    pub is_present: bool,
    /// Nobody took it: it is of the timeline.
    pub is_checkpoint: bool,
}

impl Snapshots {
    /// Puts them in the order they are shown in.
    pub fn new(machine: String, all: Result<Vec<Snapshot>, Failure>) -> Snapshots {
        let rows = all.as_ref().map(|all| tree::rows(all)).unwrap_or_default();
        Snapshots { machine, all, rows, timeline: Vec::new(), plan: None }
    }

    /// The same with a timeline.
    pub fn with_timeline(self, timeline: Vec<Snapshot>, plan: Option<Timeline>) -> Snapshots {
        Snapshots { timeline, plan, ..self }
    }

    /// The snapshot, or the checkpoint of the timeline, with this id.
    pub fn get(&self, id: &str) -> Option<&Snapshot> {
        self.points().find(|one| one.id == id)
    }

    /// All snapshots, then all checkpoints.
    pub fn points(&self) -> impl Iterator<Item = &Snapshot> {
        self.list().iter().chain(&self.timeline)
    }

    /// All that could be read.
    pub fn list(&self) -> &[Snapshot] {
        self.all.as_deref().unwrap_or_default()
    }

    /// The names that are taken.
    pub fn names(&self) -> Vec<&str> {
        self.list().iter().map(|one| one.name.as_str()).collect()
    }
}

/// A guest's picture, reduced. Kept apart from [`Model`]: it is large and compared by its number.
#[derive(Debug, Clone)]
pub struct Picture {
    /// Whose.
    pub name: String,
    /// The pixels; `None` when the screen is off or the machine gone.
    pub image: Option<egui::ColorImage>,
}

impl Model {
    /// The size of a new disk, bytes, until somebody chooses another.
    pub fn default_disk(&self) -> u64 {
        self.host.as_ref().map_or(8 << 30, HostLimits::default_disk)
    }

    /// The names that are taken.
    pub fn names(&self) -> Vec<&str> {
        self.machines.iter().flatten().map(|machine| machine.name.as_str()).collect()
    }

    /// The snapshots of the machine of this name, once they have been read.
    pub fn snapshots_of(&self, name: &str) -> Option<&Snapshots> {
        self.snapshots.as_ref().filter(|snapshots| snapshots.machine == name)
    }

    /// What goes on and is done to the machine of this name.
    pub fn job_of(&self, name: &str) -> Option<&Job> {
        self.running_jobs().find(|job| job.about.machine == name)
    }

    /// The jobs that go on.
    pub fn running_jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().filter(|job| job.is_running())
    }

    /// The machine of this name.
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.as_deref().unwrap_or_default().iter().find(|m| m.name == name)
    }
}
