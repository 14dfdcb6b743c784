//! What the person is doing in the manager: where they are, what they have typed, what is open.

use std::path::{Path, PathBuf};

use vmm_core::backend::disk::Format;
use vmm_core::config::{ConfigError, VmConfig};

use super::action::{Power, Settings};
use super::model::{Failure, ImageFacts};
use super::picker::Picker;
use crate::jobs::Disk;
use crate::library::{HostLimits, Medium, NewDisk, NewMachine, Timeline, Trashed};
use crate::theme::Tone;

/// A page of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Page {
    /// The library, and the machine selected in it.
    #[default]
    Library,
    /// *New virtual machine*.
    New,
}

/// A tab of the machine's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tab {
    /// Its picture and what it is.
    #[default]
    Overview,
    /// The points that it can go back to.
    Snapshots,
    /// Its settings.
    Hardware,
    /// What it and its monitor wrote down.
    Log,
}

impl Tab {
    /// All, in the order that never changes.
    pub const ALL: [Tab; 4] = [Tab::Overview, Tab::Snapshots, Tab::Hardware, Tab::Log];

    /// What it is called.
    pub fn label(self) -> &'static str {
        match self {
            Tab::Overview => "Overview",
            Tab::Snapshots => "Snapshots",
            Tab::Hardware => "Hardware",
            Tab::Log => "Log",
        }
    }
}

/// A dialog over the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialog {
    /// All keys.
    Keys,
    /// What this is.
    About,
    /// A machine's new name, as typed so far.
    Rename(String, String),
    /// A power verb that loses something.
    Confirm(String, Power),
    /// Whether a machine's UEFI variables are to be forgotten.
    ResetVariables(String),
    /// What a snapshot of the machine is to be called.
    TakeSnapshot(String, Words),
    /// What a snapshot, by its id, is to be called from now on.
    DescribeSnapshot(String, String, Words),
    /// Whether to go back to a snapshot.
    RestoreSnapshot(Return),
    /// Whether a snapshot of the machine, by its id, is to go.
    DeleteSnapshot(String, String),
    /// What a fork of the machine is to be called.
    Fork(String, String),
    /// What a clone of the machine is to be.
    Clone(Copy),
    /// How the machine's timeline is kept, as chosen so far.
    Timeline(String, bool, Timeline),
    /// A disk image that is looked at.
    Image(Image),
    /// How large a disk is to be: which, what it is called, what it has now, what was typed, whether its timeline keeps a
    /// checkpoint first.
    Grow {
        /// Which.
        disk: Disk,
        /// What it is called.
        name: String,
        /// What it has now, bytes.
        now: u64,
        /// What was typed.
        typed: String,
        /// A checkpoint is kept first.
        kept: bool,
    },
    /// Where a copy of an image goes, as typed so far, and its format.
    Convert(PathBuf, String, Format),
    /// Whether a machine's disk, from 0, is to have this format.
    Switch(String, usize, Format),
    /// How large a new disk of the machine is to be, bytes, as chosen so far.
    AddDisk(String, u64),
    /// What goes on and what has ended.
    Jobs,
    /// Jobs go on, and the window was to be closed.
    Quit,
}

/// What is said of a snapshot, as typed so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// Its name.
    pub name: String,
    /// Its note.
    pub note: String,
}

/// A disk image, as chosen so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// Its path, as typed.
    pub typed: String,
    /// The one that was looked at, and what it is; `None` inside until that is known.
    pub looked: Option<(PathBuf, Option<Result<ImageFacts, Failure>>)>,
}

/// A clone, as chosen so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The machine.
    pub machine: String,
    /// The snapshot's id; absent: what the machine is now.
    pub of: Option<String>,
    /// What it is called.
    pub name: String,
    /// It shares nothing with the first machine.
    pub full: bool,
    /// It is started.
    pub start: bool,
}

/// Going back to a snapshot, as chosen so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Return {
    /// The machine.
    pub machine: String,
    /// The snapshot's id.
    pub id: String,
    /// A snapshot of the present is taken first.
    pub keep: bool,
    /// What that is called.
    pub name: String,
    /// The machine is started afterwards.
    pub start: bool,
}

impl Dialog {
    /// What it shows depends on the machine's snapshots.
    pub fn is_about_snapshots(&self) -> bool {
        use Dialog as D;
        matches!(
            self,
            D::TakeSnapshot(..) | D::DescribeSnapshot(..) | D::RestoreSnapshot(_) | D::DeleteSnapshot(..) | D::Clone(_)
        )
    }
}

/// A passing notice.
#[derive(Debug, Clone, PartialEq)]
pub struct Toast {
    /// Its number.
    pub id: u64,
    /// What it says.
    pub text: String,
    /// What kind of news it is.
    pub tone: Tone,
    /// The machine that *Undo* brings back.
    pub undo: Option<Trashed>,
    /// When it goes, seconds of the window's clock; set when it is first shown.
    pub until: Option<f64>,
}

/// Everything the person is doing.
#[derive(Debug, Default)]
pub struct ViewState {
    /// The page.
    pub page: Page,
    /// The selected machine.
    pub selected: Option<String>,
    /// The tab of its page.
    pub tab: Tab,
    /// What is searched for.
    pub search: String,
    /// The search field gets the keyboard in the next frame.
    pub focus_search: bool,
    /// The snapshot that is looked at, by its id; `None` is the present.
    pub snapshot: Option<String>,
    /// It is scrolled to once.
    pub reveal_snapshot: bool,
    /// The row of the snapshots' tree that has the keyboard: keys mean the snapshot and not the machine.
    pub focused_snapshot: Option<Option<String>>,
    /// The machine that is being made.
    pub draft: Option<Draft>,
    /// The settings that are being changed.
    pub edit: Option<Edit>,
    /// The open file picker.
    pub picker: Option<Picker>,
    /// The open dialog.
    pub dialog: Option<Dialog>,
    /// What failed and has not been closed.
    pub failures: Vec<Failure>,
    /// Passing notices.
    pub toasts: Vec<Toast>,
    /// Kept from run to run.
    pub settings: Settings,
    /// What the desktop prefers, where it says so.
    pub desktop: Option<egui::Theme>,
    next_toast: u64,
}

/// The most failures that are shown; older ones go.
const MAX_FAILURES: usize = 5;
/// The most notices that are shown.
const MAX_TOASTS: usize = 4;

impl ViewState {
    /// Shows a passing notice.
    pub fn toast(&mut self, tone: Tone, text: String, undo: Option<Trashed>) {
        self.next_toast += 1;
        self.toasts.push(Toast { id: self.next_toast, text, tone, undo, until: None });
        let excess = self.toasts.len().saturating_sub(MAX_TOASTS);
        self.toasts.drain(..excess);
    }

    /// Shows a failure until it is closed. The same one twice is one.
    pub fn fail(&mut self, failure: Failure) {
        self.failures.retain(|other| *other != failure);
        self.failures.push(failure);
        let excess = self.failures.len().saturating_sub(MAX_FAILURES);
        self.failures.drain(..excess);
    }

    /// A dialog or the picker is open: the window's own keys rest.
    pub fn is_modal(&self) -> bool {
        self.dialog.is_some() || self.picker.is_some()
    }
}

/// A machine that is being made.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What is to be made.
    pub new: NewMachine,
    /// The person named it: what a medium suggests no longer counts.
    pub named: bool,
    /// The file it is made from and what that turned out to be; `None` inside while it is looked at.
    pub source: Option<(PathBuf, Option<Result<Medium, Failure>>)>,
    /// It is being made.
    pub making: bool,
}

/// A name when nothing suggests a better one.
const PLAIN_NAME: &str = "Virtual machine";

impl Draft {
    /// A machine with this host's defaults, with a name that no other has.
    pub fn new(host: &HostLimits, taken: &[&str]) -> Draft {
        let mut new = NewMachine::with_defaults(free_name(PLAIN_NAME, taken), host);
        new.disks = vec![NewDisk::create(host.default_disk())];
        Draft { new, named: false, source: None, making: false }
    }

    /// Starts over with a file whose kind is not known yet.
    pub fn look_at(&mut self, path: PathBuf) {
        self.source = Some((path, None));
    }

    /// Takes what a file turned out to be, and the machine that suits it. A file that is no longer the draft's is ignored.
    pub fn found(&mut self, path: &Path, found: Result<(Medium, NewMachine), Failure>, taken: &[&str]) {
        if self.source.as_ref().is_none_or(|(source, _)| source != path) {
            return;
        }
        let found = found.map(|(medium, suggested)| {
            let name = if self.named { self.new.name.clone() } else { free_name(&suggested.name, taken) };
            self.new = NewMachine { name, ..suggested };
            medium
        });
        self.source = Some((path.to_path_buf(), Some(found)));
    }

    /// All that is wrong with it. `taken` are the names that others have.
    pub fn errors(&self, taken: &[&str]) -> Vec<ConfigError> {
        let mut errors = self.new.validate().err().unwrap_or_default();
        if taken.iter().any(|name| crate::library::name::same(name, self.new.name.trim())) {
            let problem = "another virtual machine has this name; choose another".to_string();
            errors.push(ConfigError { field: "name".into(), problem });
        }
        errors
    }
}

/// `wish`, or `wish 2`, `wish 3`…, whichever nobody has.
pub fn free_name(wish: &str, taken: &[&str]) -> String {
    let is_free = |name: &str| !taken.iter().any(|other| crate::library::name::same(other, name));
    if is_free(wish) {
        return wish.to_string();
    }
    (2..).map(|n| format!("{wish} {n}")).find(|name| is_free(name)).unwrap_or_default()
}

/// Settings that are being changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// Whose.
    pub name: String,
    /// As they are kept.
    pub kept: VmConfig,
    /// As they are edited.
    pub config: VmConfig,
}

impl Edit {
    /// Starts with what is kept.
    pub fn new(name: &str, kept: &VmConfig) -> Edit {
        Edit { name: name.to_string(), kept: kept.clone(), config: kept.clone() }
    }

    /// Something was changed.
    pub fn is_changed(&self) -> bool {
        self.config != self.kept
    }
}
