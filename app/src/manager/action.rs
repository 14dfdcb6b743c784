//! What a person can ask of the manager: one vocabulary for menu, key and button; and what goes to the workers and back.

use std::path::PathBuf;

use egui::{Key, KeyboardShortcut, Modifiers};
use serde::{Deserialize, Serialize};
use vmm_core::backend::disk::Format;
use vmm_core::config::VmConfig;

use super::model::{Check, Failure, ImageFacts, Log, Machine, Model, Picture, Snapshots, State};
use super::picker::Entry;
use super::state::{Page, Tab, ViewState};
use crate::jobs::disks::Size;
use crate::jobs::{Disk, First, Job, Present};
use crate::library::{HostLimits, Medium, NewMachine, Timeline, Trashed};
use crate::theme::{Appearance, icon};

/// What a view asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// A command of the menus.
    Command(Command),
    /// Show a machine.
    Select(String),
    /// Show another tab of it.
    Show(Tab),
    /// Start it, or show its window when it runs: what Enter and a double click do.
    Activate(String),
    /// Let a file be chosen.
    Pick(Purpose),
    /// A file was chosen.
    Picked(Purpose, PathBuf),
    /// Take the medium out of a drive.
    Eject(usize),
    /// Leave the page or dialog.
    Leave,
    /// Make the machine of the form, and start it.
    Create {
        /// Start it too.
        start: bool,
    },
    /// Keep the edited settings.
    Save,
    /// Forget the edits.
    Revert,
    /// Give the machine its new name.
    Rename(String, String),
    /// Take a machine out of the trash again.
    Restore(Trashed),
    /// Close the failure of this number.
    Dismiss(usize),
    /// Close it and do what it offers.
    Accept(usize),
    /// Close the notice of this number.
    DismissToast(u64),
    /// The picker wants another folder's files.
    List(PathBuf),
    /// Ask whether a machine's UEFI variables are to be forgotten.
    AskResetVariables(String),
    /// Forget them.
    ResetVariables(String),
    /// Do what the open confirmation asks about.
    Confirm(String, Power),
    /// Look at a snapshot, by its id, or at the present.
    LookAt(Option<String>),
    /// Ask whether to go back to a snapshot of the selected machine.
    AskRestore(String),
    /// Ask what a snapshot of the selected machine is to be called.
    AskDescribe(String),
    /// Ask what a clone of a snapshot of the selected machine is to be.
    AskClone(String),
    /// Ask whether a snapshot of the selected machine is to go.
    AskDeleteSnapshot(String),
    /// Ask how large a disk is to be.
    AskGrow(Disk),
    /// Ask whether a disk of a machine, from 0, is to have another format.
    AskSwitch(String, usize, Format),
    /// Ask how large a new disk of a machine is to be.
    AskAddDisk(String),
    /// Ask where a copy of an image is to go.
    AskConvert(PathBuf),
    /// See what an image is, for the dialog that is open.
    LookAtImage(PathBuf),
    /// Close the dialog and have this done.
    Answer(Request),
    /// Give a job up.
    Cancel(u64),
    /// Give all jobs up and end the manager.
    QuitAnyway,
}

/// What the machine's power button and plug do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Start it.
    Start,
    /// Start it, and keep nothing of what happens then.
    StartUnsaved,
    /// Ask the guest to shut down.
    ShutDown,
    /// Pull the plug.
    Off,
    /// Press reset.
    Reset,
    /// Stop the CPUs.
    Pause,
    /// Save it and end it.
    Suspend,
    /// Go on.
    Resume,
}

/// What a file is chosen for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// *Open a file*: whatever it is.
    Open,
    /// The medium of a CD-ROM drive.
    Medium(usize),
    /// A hard disk of the form, by its number; one more when the number is their count.
    Disk(usize),
    /// The kernel to boot.
    Kernel,
    /// Its initial RAM disk.
    Initrd,
    /// A disk image to look at.
    Image,
}

impl Purpose {
    /// The title of the dialog.
    pub fn title(&self) -> &'static str {
        match self {
            Purpose::Open => "Open a file",
            Purpose::Medium(_) => "Choose a CD or DVD image",
            Purpose::Disk(_) | Purpose::Image => "Choose a disk image",
            Purpose::Kernel => "Choose a kernel",
            Purpose::Initrd => "Choose an initial RAM disk",
        }
    }
}

/// What is kept from one run of the manager to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Dark or light.
    pub appearance: Appearance,
    /// The text's size, per cent.
    pub scale: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { appearance: Appearance::Desktop, scale: 100 }
    }
}

/// What the manager asks of its workers. Each is one call of a function that the command line calls too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A power verb.
    Power(String, Power),
    /// One that loses something, though the machine's timeline could not keep that.
    LoseAnyway(String, Power),
    /// Bring its window to the front.
    ShowConsole(String),
    /// Make a machine.
    Create {
        /// What it is.
        new: NewMachine,
        /// Start it too.
        start: bool,
    },
    /// Run the demo guest.
    Demo,
    /// Keep changed settings of a machine, which were the last ones before.
    Save(String, Box<VmConfig>, Box<VmConfig>),
    /// Change the medium of a running machine's drive.
    ChangeMedium(String, usize, Option<PathBuf>),
    /// Give it a new name.
    Rename(String, String),
    /// Forget its UEFI variables.
    ResetVariables(String),
    /// Put it in the trash.
    Delete(String),
    /// Take it out again.
    Restore(Trashed),
    /// See what a file is.
    Inspect(PathBuf),
    /// Read a folder.
    List(PathBuf),
    /// Ask the desktop for a file; `Update::NoDialog` when it has no dialog.
    AskDesktop(Purpose),
    /// Look again at what the host can do.
    CheckHost {
        /// Say so when all is well, too.
        tell: bool,
    },
    /// What the manager looks at: the selected machine, and whether its log is open.
    Watch(Watch),
    /// Keep the settings.
    Keep(Settings),
    /// Take a snapshot: the machine, the name, the note.
    TakeSnapshot(String, String, String),
    /// Go back to one.
    RestoreSnapshot {
        /// The machine.
        machine: String,
        /// Which.
        snapshot: Named,
        /// What becomes of the present.
        present: Present,
        /// Start it afterwards.
        start: bool,
    },
    /// Delete one: the machine, which.
    DeleteSnapshot(String, Named),
    /// Give one another name and note: the machine, which, both.
    DescribeSnapshot(String, Named, String, String),
    /// Fork a machine that runs: its name, the fork's.
    Fork(String, String),
    /// Make a clone.
    Clone {
        /// The machine.
        machine: String,
        /// Of which snapshot or checkpoint; absent: of what the machine is now.
        of: Option<Named>,
        /// What to call it.
        new: String,
        /// It shares nothing with the first.
        full: bool,
        /// Start it too.
        start: bool,
    },
    /// Keep a machine's timeline like this, or none.
    SetTimeline(String, Option<Timeline>),
    /// See what an image is.
    LookAtImage(PathBuf),
    /// Do something to an image.
    Disk(Disk, DiskWork),
    /// Copy an image to a new file, in this format.
    Convert(PathBuf, PathBuf, Format),
    /// Have a disk of a machine, from 0, in this format from now on.
    SwitchDisk(String, usize, Format),
    /// Give a machine one more disk, empty, of so many bytes.
    AddDisk(String, u64),
    /// Give a job up.
    Cancel(u64),
}

/// What is done to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskWork {
    /// It is made larger.
    Grow(Size, First),
    /// The host gets back what it does not need.
    Compact,
    /// Its tables are looked through.
    Check,
    /// They are put right.
    Repair,
}

/// A snapshot, for what is done and for what is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// What the manager looks at, so that workers read no more than that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watch {
    /// The selected machine.
    pub selected: Option<String>,
    /// Its log is open.
    pub log: bool,
    /// Its snapshots are.
    pub snapshots: bool,
}

/// What the workers tell.
#[derive(Debug)]
pub enum Update {
    /// Where the library is.
    Library(PathBuf),
    /// The machines.
    Machines(Result<Vec<Machine>, Failure>),
    /// A machine's picture changed.
    Picture(Picture),
    /// What the host can give, and what is wrong with it.
    Host(HostLimits, Vec<Check>),
    /// What a disk image is.
    Image(PathBuf, Result<ImageFacts, Failure>),
    /// What a file is, and the machine that most people want from it.
    Inspected(PathBuf, Result<(Medium, NewMachine), Failure>),
    /// A folder's files.
    Listed(PathBuf, Result<Vec<Entry>, String>),
    /// A file was chosen in the desktop's dialog; `None` when the person thought better of it.
    Chosen(Purpose, Option<PathBuf>),
    /// The desktop has no file dialog.
    NoDialog(Purpose),
    /// A machine was made.
    Created(String),
    /// The machine of the form could not be made.
    NotCreated(Failure),
    /// It has a new name.
    Renamed(String, String),
    /// It is in the trash; what it held, in words.
    Deleted(Trashed, String),
    /// Its settings are kept.
    Saved(String),
    /// Good news worth a line.
    Notice(String),
    /// Something failed.
    Failed(Failure),
    /// The log's end.
    Log(Log),
    /// The selected machine's snapshots.
    Snapshots(Snapshots),
    /// A snapshot's screen, by the snapshot's id.
    SnapshotPicture(String, egui::ColorImage),
    /// How all jobs are.
    Jobs(Vec<Job>),
    /// Something was given up as it was asked to.
    Cancelled(String),
    /// The kept settings.
    Settings(Settings),
    /// What the desktop prefers.
    Desktop(Option<egui::Theme>),
}

/// The commands of the menus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The page *New virtual machine*.
    New,
    /// *Open a file*.
    Open,
    /// The built-in demo guest.
    Demo,
    /// End the manager. The machines go on.
    Quit,
    /// Look like the desktop.
    LookDesktop,
    /// Dark.
    LookDark,
    /// Light.
    LookLight,
    /// Bigger text.
    Larger,
    /// Smaller text.
    Smaller,
    /// Text of 100 %.
    NormalSize,
    /// To the search field.
    Search,
    /// Start.
    Start,
    /// Start without saving.
    StartUnsaved,
    /// The window of a running machine.
    Console,
    /// Shut Down.
    ShutDown,
    /// Pause.
    Pause,
    /// Suspend.
    Suspend,
    /// Resume.
    Resume,
    /// Power Off.
    PowerOff,
    /// Reset.
    Reset,
    /// Take Snapshot.
    TakeSnapshot,
    /// Fork.
    Fork,
    /// Clone.
    Clone,
    /// How the timeline is kept.
    Timeline,
    /// The machine's settings.
    Settings,
    /// Rename.
    Rename,
    /// To the trash.
    Delete,
    /// Look again at what the host can do.
    CheckHost,
    /// Look at a disk image, and do something to it.
    DiskImages,
    /// What goes on and what has ended.
    Jobs,
    /// All keys.
    Keys,
    /// What this is.
    About,
}

const CTRL: Modifiers = Modifiers::COMMAND;

impl Command {
    /// Every command, in the order of the menus.
    pub const ALL: [Command; 32] = {
        use Command as C;
        [
            C::New,
            C::Open,
            C::Demo,
            C::Quit,
            C::LookDesktop,
            C::LookDark,
            C::LookLight,
            C::Larger,
            C::Smaller,
            C::NormalSize,
            C::Search,
            C::Start,
            C::StartUnsaved,
            C::Console,
            C::ShutDown,
            C::Pause,
            C::Suspend,
            C::Resume,
            C::PowerOff,
            C::Reset,
            C::TakeSnapshot,
            C::Fork,
            C::Clone,
            C::Timeline,
            C::Settings,
            C::Rename,
            C::Delete,
            C::CheckHost,
            C::DiskImages,
            C::Jobs,
            C::Keys,
            C::About,
        ]
    };

    /// What it is called. An ellipsis says that a question or a page follows.
    pub fn label(self) -> &'static str {
        match self {
            Command::New => "New virtual machine…",
            Command::Open => "Open a file…",
            Command::Demo => "Try the demo guest",
            Command::Quit => "Quit",
            Command::LookDesktop => "Like the desktop",
            Command::LookDark => "Dark",
            Command::LookLight => "Light",
            Command::Larger => "Larger text",
            Command::Smaller => "Smaller text",
            Command::NormalSize => "Normal text size",
            Command::Search => "Search",
            Command::Start => "Start",
            Command::StartUnsaved => "Start Without Saving",
            Command::Console => "Show console",
            Command::ShutDown => "Shut Down",
            Command::Pause => "Pause",
            Command::Suspend => "Suspend",
            Command::Resume => "Resume",
            Command::PowerOff => "Power Off…",
            Command::Reset => "Reset…",
            Command::TakeSnapshot => "Take Snapshot…",
            Command::Fork => "Fork…",
            Command::Clone => "Clone…",
            Command::Timeline => "Timeline…",
            Command::Settings => "Settings",
            Command::Rename => "Rename…",
            Command::Delete => "Move to trash",
            Command::CheckHost => "Check this host",
            Command::DiskImages => "Disk images…",
            Command::Jobs => "Jobs",
            Command::Keys => "Keys",
            Command::About => "About Orangery",
        }
    }

    /// Its icon.
    pub fn icon(self) -> &'static str {
        match self {
            Command::New => icon::ADD,
            Command::Open => icon::OPEN,
            Command::Demo => icon::SANDBOX,
            Command::Quit => icon::QUIT,
            Command::LookDesktop | Command::LookDark | Command::LookLight => icon::NOT_CHOSEN,
            Command::Larger | Command::Smaller | Command::NormalSize => icon::TEXT_SIZE,
            Command::Search => icon::SEARCH,
            Command::Start | Command::StartUnsaved | Command::Resume => icon::START,
            Command::Console => icon::CONSOLE,
            Command::ShutDown => icon::SHUT_DOWN,
            Command::Pause => icon::PAUSE,
            Command::Suspend => icon::SUSPEND,
            Command::PowerOff => icon::POWER_OFF,
            Command::Reset => icon::RESET,
            Command::TakeSnapshot => icon::SNAPSHOT,
            Command::Fork => icon::FORK,
            Command::Clone => icon::CLONE,
            Command::Timeline => icon::TIMELINE,
            Command::Settings => icon::SETTINGS,
            Command::Rename => icon::RENAME,
            Command::Delete => icon::TRASH,
            Command::CheckHost => icon::GOOD,
            Command::DiskImages => icon::DISK,
            Command::Jobs => icon::JOBS,
            Command::Keys => icon::KEYS,
            Command::About => icon::INFO,
        }
    }

    /// Its key.
    pub fn shortcut(self) -> Option<KeyboardShortcut> {
        let (modifiers, key) = match self {
            Command::New => (CTRL, Key::N),
            Command::Open => (CTRL, Key::O),
            Command::Quit => (CTRL, Key::Q),
            Command::Search => (CTRL, Key::F),
            Command::Larger => (CTRL, Key::Plus),
            Command::Smaller => (CTRL, Key::Minus),
            Command::NormalSize => (CTRL, Key::Num0),
            Command::TakeSnapshot => (CTRL, Key::T),
            Command::Settings => (CTRL, Key::Comma),
            Command::Rename => (Modifiers::NONE, Key::F2),
            Command::Delete => (Modifiers::NONE, Key::Delete),
            Command::Keys => (Modifiers::NONE, Key::F1),
            _ => return None,
        };
        Some(KeyboardShortcut::new(modifiers, key))
    }

    /// The power verb it stands for.
    pub fn power(self) -> Option<Power> {
        Some(match self {
            Command::Start => Power::Start,
            Command::StartUnsaved => Power::StartUnsaved,
            Command::ShutDown => Power::ShutDown,
            Command::PowerOff => Power::Off,
            Command::Reset => Power::Reset,
            Command::Pause => Power::Pause,
            Command::Suspend => Power::Suspend,
            Command::Resume => Power::Resume,
            _ => return None,
        })
    }

    /// Why it can't be done now; `None` when it can.
    pub fn refusal(self, model: &Model, state: &ViewState) -> Option<&'static str> {
        let machine = state.selected.as_deref().and_then(|name| model.machine(name));
        use Command as C;
        let about_machine = self.power().is_some()
            || matches!(
                self,
                C::Console | C::Settings | C::Rename | C::Delete | C::TakeSnapshot | C::Fork | C::Clone | C::Timeline
            );
        if about_machine && state.page != Page::Library {
            return Some("Go back to the library first");
        }
        let is_busy = |machine: &Machine| model.job_of(&machine.name).is_some();
        let refused = |machine: &Machine| match self {
            Command::Console if machine.headless => Some("It runs without a window"),
            Command::Console if !machine.state.is_alive() => Some("It is not running"),
            Command::TakeSnapshot => snapshot_refusal(model, machine),
            Command::Timeline => change_refusal(model, machine),
            Command::Clone if machine.state.is_alive() => Some("Stop it first, or clone one of its snapshots"),
            Command::Clone => change_refusal(model, machine),
            Command::Fork if !machine.state.has_picture() => Some("Only a machine that runs can be forked"),
            // What is being done to its files needs them, and one that saves it ends it.
            Command::Start
            | Command::StartUnsaved
            | Command::Suspend
            | Command::Rename
            | Command::Delete
            | Command::Fork
                if is_busy(machine) =>
            {
                Some(BUSY)
            }
            Command::Resume if is_busy(machine) && machine.state == State::Suspended => Some(BUSY),
            Command::Rename | Command::Delete if machine.state.is_alive() => Some("Stop it first"),
            Command::Rename if machine.config.is_err() => Some("Its file can't be understood"),
            _ => self.power().and_then(|verb| verb.refusal(machine.state)),
        };
        match machine {
            Some(machine) if about_machine => refused(machine),
            None if about_machine => Some("Select a virtual machine first"),
            _ => None,
        }
    }
}

/// Why nothing else can be done to a machine while a job is.
const BUSY: &str = "Wait until its job is done, or cancel it";

/// Why no snapshot of the machine can be taken now; `None` when one can.
fn snapshot_refusal(model: &Model, machine: &Machine) -> Option<&'static str> {
    match machine.state {
        State::Suspended => Some("It is suspended: resume it first. A snapshot can be taken while it runs"),
        _ => change_refusal(model, machine),
    }
}

/// Why what is saved of the machine can't be changed now; `None` when it can.
pub fn change_refusal(model: &Model, machine: &Machine) -> Option<&'static str> {
    match machine.state {
        _ if model.job_of(&machine.name).is_some() => Some(BUSY),
        State::Broken => Some("Its file can't be understood"),
        State::Starting => Some("It is still starting"),
        State::Unresponsive => Some("Its process does not answer"),
        State::Stopped | State::Suspended | State::Running | State::Paused => None,
    }
}

/// Why nothing can be done to the machine's disks now; `None` when it can.
pub fn disk_refusal(model: &Model, machine: &Machine) -> Option<&'static str> {
    match machine.state {
        state if state.is_alive() => Some("Stop it first"),
        State::Suspended => {
            Some("It is suspended, and goes on with its disks as they are: resume it, and shut it down")
        }
        _ => change_refusal(model, machine),
    }
}

impl Power {
    /// Why the verb makes no sense in this state; `None` when it does.
    pub fn refusal(self, state: State) -> Option<&'static str> {
        use State as S;
        match (self, state) {
            (Power::Start | Power::StartUnsaved, S::Stopped) => None,
            (Power::StartUnsaved | Power::Resume, S::Suspended) => None,
            (Power::Start, S::Suspended) => Some("It is suspended: resume it"),
            (Power::Start | Power::StartUnsaved, S::Broken) => Some("Its file can't be understood"),
            (Power::Start | Power::StartUnsaved, _) => Some("It is running already"),
            (Power::Off, S::Suspended) => None,
            (_, S::Stopped | S::Suspended | S::Broken) => Some("It is not running"),
            (Power::Off, _) => None,
            (_, S::Starting) => Some("It is still starting"),
            (_, S::Unresponsive) => Some("Its process does not answer"),
            (Power::ShutDown, S::Paused) => Some("Resume it first: a paused guest can't shut down"),
            (Power::ShutDown | Power::Reset, _) => None,
            (Power::Pause, S::Paused) => Some("It is paused already"),
            (Power::Pause | Power::Suspend, _) => None,
            (Power::Resume, S::Paused) => None,
            (Power::Resume, _) => Some("It is not paused"),
        }
    }
}
