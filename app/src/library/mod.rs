//! The library: virtual machines on disk, one folder each, which its owner may copy, move or back up.
//!
//! ```text
//! <root>/                         $ORANGERY_LIBRARY, or machines/ in the person's data folder
//!   debian-12/                    a machine; the folder's name is a slug of the machine's
//!     machine.toml                what it is (schema 1), replaced whole at every change
//!     nvram.fd                    its UEFI variables, once it has started
//!     checkpoints/                what was saved of it while it ran
//!     disks/disk-0.raw            its own disks; paths in machine.toml are relative to the folder
//!     logs/                       serial.log, debug.log, orangery.log
//!     vm.lock                     held by the process that runs it
//!   .trash/2026-…-debian-12/      a deleted machine, until the trash is emptied
//!   .lock                         held for the moment in which machines come, go or change their names
//! ```
//!
//! Everything here may block on the disk: the windows call it from a worker thread.

pub mod checkpoints;
mod copies;
pub mod detect;
pub mod diff;
mod disks;
pub(crate) mod files;
pub mod firmware;
mod layers;
pub mod limits;
pub mod lock;
mod machine;
pub mod name;
pub mod preflight;
pub mod size;
pub mod snapshots;
#[cfg(test)]
mod tests;
mod time;
mod timeline;
mod trash;
mod unsaved;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vmm_core::checkpoint::CheckpointError;
use vmm_core::config::{
    Boot, CdromConfig, ConfigError, DiskBus, DiskConfig, DisplayConfig, NetConfig, Topology, VmConfig,
};
use vmm_core::vm::BootError;

pub use checkpoints::{Checkpoints, Saved};
pub use copies::CloneWish;
pub use detect::{Medium, MediumKind, detect};
pub use disks::DiskRefusal;
pub use files::random_hex;
pub use firmware::{Firmware, UefiSupport};
pub use layers::DiskImageError;
pub(crate) use layers::{is_inside, is_own};
pub use limits::HostLimits;
pub use lock::Holder;
pub use machine::Machine;
pub use preflight::{Check, Outcome, preflight};
pub use time::Timestamp;
pub use timeline::Timeline;
pub use trash::Trashed;
pub use unsaved::Unsaved;

/// The variable that names another root.
pub const ROOT_VARIABLE: &str = "ORANGERY_LIBRARY";
/// The folder of a machine that is being made. Left behind only by a crash, and removed by the next that is made.
const UNFINISHED: &str = ".new";
/// How many machines may share a slug.
const MAX_TWINS: usize = 1000;
/// The largest disk that is made: what ext4 can hold in one file.
pub const MAX_DISK: u64 = 16 << 40;
/// The smallest disk that is made, bytes.
pub const MIN_DISK: u64 = 1 << 20;

/// Why something could not be done with the library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// No machine is called that.
    #[error("there is no virtual machine called {name:?}{}", .near.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    NotFound {
        /// What was asked for.
        name: String,
        /// A name that is close to it.
        near: Option<String>,
    },
    /// The name is taken.
    #[error("there is a virtual machine called {0:?} already; choose another name")]
    Exists(String),
    /// The machine runs, and what was asked for needs it stopped.
    #[error("{name:?} is running{}; shut it down first", if *.pid == 0 { String::new() } else { format!(" (process {pid})") })]
    Running {
        /// The machine.
        name: String,
        /// The process that runs it; 0 when it did not say.
        pid: u32,
    },
    /// A process does something with its files.
    #[error("something is being done with the files of {name:?} (process {pid}); wait until that is done")]
    Busy {
        /// The machine.
        name: String,
        /// The process.
        pid: u32,
    },
    /// It has no UEFI variables that could be reset.
    #[error("{name:?} keeps no UEFI variables: {why}")]
    NoVariables {
        /// The machine.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// It was changed since it was suspended.
    #[error(
        "the settings of {name:?} were changed since it was suspended, and it can't go on with them; change them back, or give \
         up what was running with: orangery stop --force {}", quoted(.name)
    )]
    Changed {
        /// The machine.
        name: String,
    },
    /// Its settings are not what they were when somebody began to change them.
    #[error(
        "the settings of {name:?} were changed meanwhile, by a snapshot perhaps; revert, and make your changes again"
    )]
    ChangedMeanwhile {
        /// The machine.
        name: String,
    },
    /// It is suspended, and a snapshot would lack its memory.
    #[error(
        "{name:?} is suspended, and a snapshot would lack what is in its memory; resume it first, a snapshot can be taken while it runs"
    )]
    Suspended {
        /// The machine.
        name: String,
    },
    /// What was saved of it can't be used.
    #[error(transparent)]
    Checkpoint(CheckpointError),
    /// A disk can't be part of a snapshot.
    #[error("disk {disk} of {name:?}, {}, lies outside of its folder, and a snapshot could not hold it; move it there, or make it read-only", path.display())]
    OutsideDisk {
        /// The machine.
        name: String,
        /// Which disk.
        disk: usize,
        /// Its image.
        path: PathBuf,
    },
    /// A disk's image can't be used.
    #[error(transparent)]
    Image(#[from] DiskImageError),
    /// Something is not done to a disk.
    #[error(transparent)]
    Disk(#[from] DiskRefusal),
    /// The machine that runs refuses it.
    #[error(transparent)]
    Machine(vmm_core::vm::CommandError),
    /// No snapshot is called that.
    #[error("{machine:?} has no snapshot {name:?}")]
    NoSnapshot {
        /// The machine.
        machine: String,
        /// What was asked for.
        name: String,
    },
    /// It was cancelled.
    #[error("it was cancelled")]
    Cancelled,
    /// This host has no firmware of the kind it is to start with.
    #[error(transparent)]
    Firmware(#[from] BootError),
    /// The name is none that a machine can have.
    #[error("{name:?} cannot be a name: {problem}")]
    Name {
        /// What was typed.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A machine's file cannot be understood.
    #[error("{}{}: {}{problem}", .file.display(), .line.map(|l| format!(", line {l}")).unwrap_or_default(),
        .field.as_ref().map(|f| format!("{f}: ")).unwrap_or_default())]
    Broken {
        /// The file.
        file: PathBuf,
        /// The line, from 1, where it can be told.
        line: Option<usize>,
        /// The field's path, like `disks[1].path`.
        field: Option<String>,
        /// What is wrong.
        problem: String,
    },
    /// The machine that was asked for cannot be.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<ConfigError>),
    /// The host's file system refused.
    #[error("could not {what} {}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl LibraryError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LibraryError + use<> {
        let path = path.to_path_buf();
        move |source| LibraryError::Io { what, path, source }
    }
}

/// A hard disk of a machine that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewDisk {
    /// An image or block device that is there. It stays where it is.
    Existing {
        /// Its path; a relative one starts at the present folder.
        path: PathBuf,
        /// The guest may not write.
        readonly: bool,
        /// The controller it is behind.
        bus: DiskBus,
    },
    /// A new, empty one in the machine's folder, sparse: it takes the space that the guest writes.
    Create {
        /// Its size, bytes, a multiple of 512.
        size: u64,
        /// The controller it is behind.
        bus: DiskBus,
    },
}

impl NewDisk {
    /// An image that is there, behind the default controller.
    pub fn existing(path: impl Into<PathBuf>, readonly: bool) -> NewDisk {
        NewDisk::Existing { path: path.into(), readonly, bus: DiskBus::default() }
    }

    /// A new one of `size` bytes, behind the default controller.
    pub fn create(size: u64) -> NewDisk {
        NewDisk::Create { size, bus: DiskBus::default() }
    }

    /// The controller it is behind.
    pub fn bus(&self) -> DiskBus {
        match self {
            NewDisk::Existing { bus, .. } | NewDisk::Create { bus, .. } => *bus,
        }
    }

    /// The same, to be changed.
    pub fn bus_mut(&mut self) -> &mut DiskBus {
        match self {
            NewDisk::Existing { bus, .. } | NewDisk::Create { bus, .. } => bus,
        }
    }
}

/// A machine that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMachine {
    /// What people will call it.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// What it starts.
    pub boot: Boot,
    /// Its hard disks, in order.
    pub disks: Vec<NewDisk>,
    /// The ISOs in its CD-ROM drives; `None` is an empty drive.
    pub cdroms: Vec<Option<PathBuf>>,
    /// Its network cards.
    pub nets: Vec<NetConfig>,
    /// Its screen.
    pub display: DisplayConfig,
    /// Whether it has a TPM 2.0.
    pub tpm: bool,
    /// How its CPUs are arranged: as cores of one processor when absent.
    pub topology: Option<Topology>,
    /// It shows Hyper-V's interfaces.
    pub hyperv: bool,
}

/// Whether a new machine that starts this way has a TPM unless it is told otherwise: who asks for Secure Boot most likely
/// wants what Windows 11 wants, as far as this computer has it.
pub fn default_tpm(boot: &Boot) -> bool {
    match boot {
        Boot::Uefi { secure_boot: true, .. } => preflight::has_swtpm(),
        Boot::Bios | Boot::Uefi { .. } | Boot::Kernel { .. } => false,
    }
}

/// What is wrong with the size of a new disk, bytes.
pub(crate) fn wrong_size(disk: usize, size: u64) -> Option<ConfigError> {
    let is_right = (MIN_DISK..=MAX_DISK).contains(&size) && size.is_multiple_of(512);
    let (least, most) = (size::human(MIN_DISK), size::human(MAX_DISK));
    (!is_right).then(|| ConfigError {
        field: format!("disks[{disk}].size"),
        problem: format!("a disk has {least} to {most}, in whole sectors of 512 bytes"),
    })
}

impl NewMachine {
    /// A machine with this host's defaults, a CD-ROM drive and no disk.
    pub fn with_defaults(name: impl Into<String>, limits: &HostLimits) -> NewMachine {
        let boot = Firmware::choose(None, limits.uefi).boot();
        NewMachine {
            name: name.into(),
            cpus: limits.default_cpus(),
            memory_mib: limits.default_memory_mib(),
            tpm: default_tpm(&boot),
            boot,
            disks: Vec::new(),
            cdroms: vec![None],
            nets: Vec::new(),
            display: DisplayConfig::default(),
            topology: None,
            hyperv: false,
        }
    }

    /// What is wrong with it, field by field as [`VmConfig::validate`] names them, and `name`. Touches no disk.
    ///
    /// # Errors
    /// All that is wrong at once.
    pub fn validate(&self) -> Result<(), Vec<ConfigError>> {
        let mut errors = Vec::new();
        if let Err(LibraryError::Name { problem, .. }) = name::check(&self.name) {
            errors.push(ConfigError { field: "name".into(), problem });
        }
        for (i, disk) in self.disks.iter().enumerate() {
            if let NewDisk::Create { size, .. } = disk {
                errors.extend(wrong_size(i, *size));
            }
        }
        errors.extend(self.config().validate().err().into_iter().flatten());
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// The configuration it becomes: new disks inside the folder, everything else as given.
    fn config(&self) -> VmConfig {
        let disks = self.disks.iter().enumerate().map(|(i, disk)| match disk {
            NewDisk::Existing { path, readonly, bus } => {
                DiskConfig { readonly: *readonly, bus: *bus, ..DiskConfig::new(path) }
            }
            NewDisk::Create { size: _, bus } => {
                DiskConfig { bus: *bus, ..DiskConfig::new(format!("disks/disk-{i}.raw")) }
            }
        });
        VmConfig {
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            boot: self.boot.clone(),
            disks: disks.collect(),
            cdroms: self.cdroms.iter().map(|path| CdromConfig { path: path.clone() }).collect(),
            nets: self.nets.clone(),
            display: self.display,
            tpm: self.tpm,
            topology: self.topology,
            hyperv: self.hyperv,
            uuid: None,
        }
    }

    /// The same with every path of an existing file absolute, and every such file there to be read.
    fn with_absolute_paths(&self) -> Result<NewMachine, LibraryError> {
        let mut new = self.clone();
        let (kernel, initrd) = match &mut new.boot {
            // The variables are in the folder that is made.
            Boot::Bios | Boot::Uefi { .. } => (None, None),
            Boot::Kernel { kernel, initrd, cmdline: _ } => (Some(kernel), initrd.as_mut()),
        };
        let disks = new.disks.iter_mut().filter_map(|disk| match disk {
            NewDisk::Existing { path, .. } => Some(path),
            NewDisk::Create { .. } => None,
        });
        for path in kernel.into_iter().chain(initrd).chain(disks).chain(new.cdroms.iter_mut().flatten()) {
            File::open(&path).map_err(LibraryError::io("open", path))?;
            *path = std::path::absolute(&path).map_err(LibraryError::io("find", path))?;
        }
        Ok(new)
    }
}

/// A folder in the library.
#[derive(Debug)]
pub struct Entry {
    /// The folder.
    pub folder: PathBuf,
    /// The machine in it, or why it cannot be understood.
    pub machine: Result<Machine, LibraryError>,
}

impl Entry {
    /// The machine's name; the folder's where the machine cannot be understood.
    pub fn name(&self) -> String {
        match &self.machine {
            Ok(machine) => machine.name.clone(),
            Err(_) => self.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }
}

/// The virtual machines of one person.
#[derive(Debug, Clone)]
pub struct Library {
    root: PathBuf,
}

impl Library {
    /// Where a person's machines are: `$ORANGERY_LIBRARY`, or `orangery/machines` in `$XDG_DATA_HOME`
    /// (`~/.local/share`).
    ///
    /// # Errors
    /// None of the variables nor `$HOME` is set.
    pub fn default_root() -> Result<PathBuf, LibraryError> {
        let absolute = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
        if let Some(root) = std::env::var_os(ROOT_VARIABLE).filter(|root| !root.is_empty()) {
            return std::path::absolute(&root).map_err(LibraryError::io("find", Path::new(&root)));
        }
        let data = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
        data.map(|data| data.join("orangery/machines")).ok_or_else(|| {
            let source = io::Error::new(io::ErrorKind::NotFound, "set HOME, or ORANGERY_LIBRARY to a folder");
            LibraryError::io("find the library in", Path::new("$HOME"))(source)
        })
    }

    /// Opens the library at `root`, and makes it where there is none.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Library, LibraryError> {
        let root = root.into();
        make_folders(&root)?;
        Ok(Library { root })
    }

    /// Opens the library at [`Library::default_root`].
    ///
    /// # Errors
    /// As [`Library::open`].
    pub fn open_default() -> Result<Library, LibraryError> {
        Library::open(Library::default_root()?)
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every machine, by name; one that cannot be understood is an entry with its error.
    ///
    /// # Errors
    /// The library's own folder cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, LibraryError> {
        let read = || LibraryError::io("read the library", &self.root);
        let mut entries = Vec::new();
        for item in std::fs::read_dir(&self.root).map_err(read())? {
            let item = item.map_err(read())?;
            let hidden = item.file_name().as_encoded_bytes().starts_with(b".");
            // A symbolic link to a folder is a machine that its owner keeps elsewhere.
            if !hidden && item.path().is_dir() {
                let folder = item.path();
                entries.push(Entry { machine: Machine::read(&folder), folder });
            }
        }
        entries.sort_by_cached_key(|entry| (entry.name().to_lowercase(), entry.folder.clone()));
        Ok(entries)
    }

    /// The machine with this name (letter case makes no difference), id or folder name.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], or [`LibraryError::Broken`] where the folder is there and its file is not understood.
    pub fn load(&self, name: &str) -> Result<Machine, LibraryError> {
        let mut by_folder = None;
        let mut names = Vec::new();
        for entry in self.list()? {
            let folder = entry.folder.file_name().is_some_and(|folder| folder == name);
            match entry.machine {
                Ok(machine) if name::same(&machine.name, name.trim()) || machine.id == name => return Ok(machine),
                Ok(machine) if folder => by_folder = Some(Ok(machine)),
                Ok(machine) => names.push(machine.name),
                Err(error) if folder => by_folder = Some(Err(error)),
                Err(_) => {}
            }
        }
        by_folder.unwrap_or_else(|| Err(LibraryError::NotFound { name: name.into(), near: nearest(name, names) }))
    }

    /// Makes a machine: its folder appears complete or not at all.
    ///
    /// # Errors
    /// The name is taken, the configuration is wrong, a file it names is not there, or the host has no room.
    pub fn create(&self, new: &NewMachine) -> Result<Machine, LibraryError> {
        let name = name::check(&new.name)?;
        new.validate().map_err(LibraryError::Config)?;
        let new = new.with_absolute_paths()?;
        if Firmware::of(&new.boot) == Some(Firmware::UefiSecure) {
            // Where it can't be had, a person should know before anything is installed without it.
            vmm_core::vm::uefi_firmware(true)?;
        }
        let _guard = self.guard()?;
        self.refuse_taken(&name, None)?;
        let id = random_hex().map_err(LibraryError::io("make an id from", Path::new("/dev/urandom")))?;
        let building = self.root.join(UNFINISHED);
        let _ = std::fs::remove_dir_all(&building);
        let mut machine = Machine {
            id,
            name,
            created: Timestamp::now(),
            config: new.config(),
            present: None,
            resume: None,
            timeline: None,
            restoring: None,
            folder: building.clone(),
        };
        let made = build(&machine, &new).and_then(|()| self.place(&building, &machine.name));
        match made {
            Ok(folder) => {
                machine.folder = folder;
                Ok(machine)
            }
            Err(error) => {
                let _ = std::fs::remove_dir_all(&building);
                Err(error)
            }
        }
    }

    /// Writes a machine's configuration. It takes effect at its next start.
    ///
    /// # Errors
    /// The configuration is wrong, or cannot be written; the old one is then still there.
    pub fn save(&self, machine: &Machine) -> Result<(), LibraryError> {
        name::check(&machine.name)?;
        machine.config.validate().map_err(LibraryError::Config)?;
        machine.write()
    }

    /// Gives a machine another name. Its folder keeps the one it has, so that nothing that knows its path breaks.
    ///
    /// # Errors
    /// The new name is none, or taken.
    pub fn rename(&self, name: &str, new: &str) -> Result<Machine, LibraryError> {
        let new = name::check(new)?;
        let _guard = self.guard()?;
        let mut machine = self.load(name)?;
        self.refuse_taken(&new, Some(&machine.id))?;
        machine.name = new;
        machine.write()?;
        Ok(machine)
    }

    /// Forgets a stopped machine's UEFI variables: boot entries, keys, settings. Its next start makes new ones. Says whether
    /// there were any.
    ///
    /// # Errors
    /// It runs, has no such variables, or the file cannot be removed.
    pub fn reset_variables(&self, name: &str) -> Result<bool, LibraryError> {
        let mut machine = self.load(name)?;
        let no = |why| LibraryError::NoVariables { name: machine.name.clone(), why };
        let path = match &machine.config.boot {
            Boot::Uefi { variables: Some(path), .. } => machine.resolve(path),
            Boot::Uefi { variables: None, .. } => return Err(no("it forgets them whenever it stops")),
            Boot::Bios => return Err(no("it starts with a BIOS")),
            Boot::Kernel { .. } => return Err(no("it starts a kernel without firmware")),
        };
        if !path.starts_with(machine.folder()) {
            // Its file may name anything: nothing of a person's is removed because of it.
            return Err(no("they are in a file outside of its folder; remove that yourself"));
        }
        let _lock = machine.lock()?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(LibraryError::io("remove", &path)(error)),
        }
    }

    /// Gives a machine an id of its own if another of the library has the same: its folder was copied. The caller holds the
    /// machine's lock.
    ///
    /// # Errors
    /// Its file cannot be written.
    pub fn make_id_unique(&self, machine: &mut Machine) -> Result<(), LibraryError> {
        let mut others = self.list()?.into_iter().filter_map(|entry| entry.machine.ok());
        if others.any(|other| other.id == machine.id && other.folder != machine.folder) {
            machine.id = random_hex().map_err(LibraryError::io("make an id from", Path::new("/dev/urandom")))?;
            machine.write()?;
        }
        Ok(())
    }

    /// Waits for, and takes, the lock under which machines come, go and change names.
    fn guard(&self) -> Result<File, LibraryError> {
        let path = self.root.join(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(LibraryError::io("open", &path))?;
        file.lock().map_err(LibraryError::io("lock", &path))?;
        Ok(file)
    }

    fn refuse_taken(&self, name: &str, but: Option<&str>) -> Result<(), LibraryError> {
        let others = self.list()?.into_iter().filter_map(|entry| entry.machine.ok());
        let mut others = others.filter(|machine| Some(machine.id.as_str()) != but);
        match others.find(|machine| name::same(&machine.name, name)) {
            Some(machine) => Err(LibraryError::Exists(machine.name)),
            None => Ok(()),
        }
    }

    /// Moves a finished folder to its place: the name's slug, or the first free one after it.
    fn place(&self, from: &Path, name: &str) -> Result<PathBuf, LibraryError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let slug = name::slug(name);
        for twin in 1..=MAX_TWINS {
            let to = self.root.join(if twin == 1 { slug.clone() } else { format!("{slug}-{twin}") });
            match renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    files::sync_folder(&self.root).map_err(LibraryError::io("write", &self.root))?;
                    return Ok(to);
                }
                Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => {}
                Err(error) => return Err(LibraryError::io("make", &to)(error.into())),
            }
        }
        Err(LibraryError::Exists(name.into()))
    }
}

/// Makes a folder and those above it, for its owner alone.
fn make_folders(path: &Path) -> Result<(), LibraryError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(LibraryError::io("make", path))
}

/// Fills the folder of a new machine.
fn build(machine: &Machine, new: &NewMachine) -> Result<(), LibraryError> {
    make_folders(&machine.folder.join("disks"))?;
    make_folders(&machine.logs())?;
    for (disk, made) in new.disks.iter().zip(&machine.config.disks) {
        if let NewDisk::Create { size, .. } = disk {
            let path = machine.resolve(&made.path);
            files::create_sparse(&path, *size).map_err(LibraryError::io("make the disk", &path))?;
        }
    }
    let disks = machine.folder.join("disks");
    files::sync_folder(&disks).map_err(LibraryError::io("write", &disks))?;
    machine.write()
}

/// The name a person may have meant: the one that starts closest to what was typed, if no more than a third of that is
/// wrong.
fn nearest(name: &str, names: Vec<String>) -> Option<String> {
    let typed: Vec<char> = name.trim().to_lowercase().chars().take(name::MAX_NAME).collect();
    // Levenshtein's distance to the best of the name's beginnings: the least of the last row.
    let distance = |other: &str| {
        let other: Vec<char> = other.to_lowercase().chars().collect();
        let mut row: Vec<usize> = (0..=other.len()).collect();
        for (i, a) in typed.iter().enumerate() {
            let mut diagonal = std::mem::replace(&mut row[0], i + 1);
            for (j, b) in other.iter().enumerate() {
                let best = (diagonal + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
                diagonal = std::mem::replace(&mut row[j + 1], best);
            }
        }
        row.into_iter().min().unwrap_or(0)
    };
    let (distance, closest) = names.into_iter().map(|other| (distance(&other), other)).min()?;
    (typed.len() >= 2 && distance * 3 <= typed.len()).then_some(closest)
}

/// A text as a shell takes it for one word: for the commands that people are told to copy.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+".contains(c);
    let ordinary = !text.is_empty() && !text.starts_with('-') && text.chars().all(plain);
    if ordinary { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
