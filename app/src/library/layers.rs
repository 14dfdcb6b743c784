//! The images of a machine's disks. A snapshot leaves them as they are, and the machine goes on with new ones that stand on
//! them; what no snapshot and no present needs is removed or merged.
//!
//! Images that never change may have another name in another machine's folder, as a clone's do: one with several names is
//! never written to.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm_core::backend::disk::tools::ToolError;
use vmm_core::backend::disk::{self, CreateError, CreateOptions, MergeError, OpenError};
use vmm_core::vm::DiskSwitch;

use super::machine::FILE;
use super::{LibraryError, Machine, files};

/// The folder of a machine's own disks.
pub const FOLDER: &str = "disks";

/// Whether an image is in the folder of disks of the machine with this folder, which may replace it then.
pub fn is_inside(folder: &Path, image: &Path) -> bool {
    image.parent() == Some(&folder.join(FOLDER))
}

/// A temporary file of this age belongs to no process any more.
const OLD: Duration = Duration::from_secs(24 * 60 * 60);
/// What is still to be done of a merge whose bytes are moved.
const JOURNAL: &str = "merge.json";
/// The images of which only those stay that are needed: one takes another's place.
const REPLACEMENT: &str = "replacement.json";

/// Why a disk's image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskImageError {
    /// It can't be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It can't be made or changed.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It can't be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// It can't be copied.
    #[error(transparent)]
    Copy(#[from] ToolError),
}

/// A new image for a disk, which stands on what the disk was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Which disk, from 0.
    pub disk: usize,
    /// Its file, relative to the machine's folder.
    pub path: PathBuf,
    /// The file that it stands on, relative to the machine's folder.
    pub below: PathBuf,
}

pub(super) fn image<E: Into<DiskImageError>>(error: E) -> LibraryError {
    LibraryError::Image(error.into())
}

impl Machine {
    /// Makes new images for the disks that can be written, of checkpoint `id`; nothing uses them yet.
    ///
    /// # Errors
    /// A disk lies outside of the machine's folder, or the host has no room. None is made then.
    pub(crate) fn make_overlays(&self, id: &str) -> Result<Vec<Overlay>, LibraryError> {
        let mut made = Vec::new();
        for (index, disk) in self.config.disks.iter().enumerate().filter(|(_, disk)| !disk.readonly) {
            let overlay = self.make_overlay(index, &disk.path, id);
            match overlay {
                Ok(overlay) => made.push(overlay),
                Err(error) => {
                    self.remove_overlays(&made);
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    fn make_overlay(&self, index: usize, below: &Path, id: &str) -> Result<Overlay, LibraryError> {
        let file = self.resolve(below);
        if !is_inside(self.folder(), &file) {
            return Err(LibraryError::OutsideDisk { name: self.name.clone(), disk: index, path: file });
        }
        let facts = disk::facts(&file).map_err(image)?;
        let name = format!("disk-{index}-{}.qcow2", id.get(..12).unwrap_or(id));
        let path = Path::new(FOLDER).join(name);
        let backing = file.file_name().map(PathBuf::from).unwrap_or_default();
        let options = CreateOptions::overlay(facts.size);
        disk::create_overlay(&self.resolve(&path), &backing, facts.format, options).map_err(image)?;
        Ok(Overlay { disk: index, path, below: Path::new(FOLDER).join(backing) })
    }

    /// Removes images that nothing uses after all.
    pub(crate) fn remove_overlays(&self, overlays: &[Overlay]) {
        for overlay in overlays {
            // One that stays is removed when the machine is tidied up.
            let _ = std::fs::remove_file(self.resolve(&overlay.path));
        }
    }

    /// Has the machine's file name the images again that there were before these were made, and says whether it does. Where it
    /// can't be written it may name these, durably or not, and they stay; so they do where another machine has those that there
    /// were by now, which nobody may write to any more.
    pub(crate) fn go_back_to_images(&self, overlays: &[Overlay]) -> bool {
        if overlays.is_empty() {
            return true;
        }
        let shared = overlays.iter().any(|overlay| !is_own(&self.resolve(&overlay.below)));
        let back = !shared && self.write().is_ok();
        if back {
            self.remove_overlays(overlays);
        }
        back
    }

    /// The same machine with these images in the place of what they stand on.
    pub(crate) fn with_overlays(&self, overlays: &[Overlay]) -> Machine {
        let mut machine = self.clone();
        for overlay in overlays {
            if let Some(disk) = machine.config.disks.get_mut(overlay.disk) {
                disk.path.clone_from(&overlay.path);
            }
        }
        machine
    }
}

/// The images that a machine's disks are and stand on, those in its folder.
pub(super) fn images_of(machine: &Machine) -> Result<BTreeSet<String>, LibraryError> {
    Ok(Images::read(machine)?.closure(&names(machine).collect()))
}

/// The images in a machine's folder that snapshots made and the guest does not write to now.
pub(super) fn overlays_below(machine: &Machine) -> Vec<PathBuf> {
    let folder = machine.folder().join(FOLDER);
    let present: BTreeSet<String> = names(machine).collect();
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| entry.file_name().into_string().ok());
    files.filter(|name| is_overlay(name) && !present.contains(name)).map(|name| folder.join(name)).collect()
}

/// Finishes a merge that was interrupted, and removes images that nothing needs. The caller has the lock of the machine, which
/// does not run; it can be started whatever comes of it.
///
/// # Errors
/// The host refuses something, or an image can't be understood.
pub(super) fn recover(machine: &mut Machine) -> Result<(), LibraryError> {
    finish_merge(machine, None)?;
    finish_replacement(machine)?;
    sweep(machine)?;
    machine.checkpoints().store().collect()?;
    Ok(())
}

/// Says that an image is about to be made, by the name `new`, to take the place of one that the machine has. Until
/// [`finish_replacement`] nothing of either goes. The caller has the lock of the machine, which does not run.
///
/// # Errors
/// The host refuses something.
pub(super) fn begin_replacement(machine: &Machine, new: &str) -> Result<(), LibraryError> {
    let mut either = images_of(machine)?;
    either.insert(new.into());
    let path = machine.folder().join(FOLDER).join(REPLACEMENT);
    let text = serde_json::to_vec(&either).unwrap_or_default();
    files::write_atomic(&path, &text).map_err(LibraryError::io("write", &path))
}

/// Removes what took no other's place, or whose place was taken. The caller has the lock of the machine, which does not run.
///
/// # Errors
/// The host refuses something.
pub(super) fn finish_replacement(machine: &Machine) -> Result<(), LibraryError> {
    let folder = machine.folder().join(FOLDER);
    let path = folder.join(REPLACEMENT);
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    let checkpoints = machine.checkpoints();
    if !checkpoints.can_be_read()? {
        return Ok(());
    }
    // However their paths are written.
    let in_folder = |machine: &Machine| -> Vec<String> {
        let all = machine.config.disks.iter().filter_map(|disk| machine.resolve(&disk.path).canonicalize().ok());
        all.filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect()
    };
    let mut used: BTreeSet<String> = in_folder(machine).into_iter().chain(names(machine)).collect();
    for saved in checkpoints.list()? {
        let then = saved.machine(machine)?;
        used.extend(in_folder(&then).into_iter().chain(names(&then)));
    }
    let images = Images::read(machine)?;
    let needed = images.closure(&used);
    let either: BTreeSet<String> = serde_json::from_slice(&text).unwrap_or_default();
    // Only what is there by that very name.
    for name in either.iter().filter(|name| images.below.contains_key(*name) && !needed.contains(*name)) {
        let path = folder.join(name);
        std::fs::remove_file(&path).map_err(LibraryError::io("remove", &path))?;
    }
    std::fs::remove_file(&path).map_err(LibraryError::io("remove", &path))?;
    files::sync_folder(&folder).map_err(LibraryError::io("write", &folder))
}

/// Removes what was being written when a process was killed. The caller holds the machine, so nobody is writing it now.
fn sweep_parts(machine: &Machine) -> Result<(), LibraryError> {
    let disks = machine.folder().join(FOLDER);
    let checkpoints = machine.checkpoints();
    let saved = checkpoints.store().list()?.into_iter().map(|id| checkpoints.store().path(&id));
    for folder in saved.chain([disks, machine.tpm()]) {
        files::remove_temporaries(&folder, |_| Duration::ZERO).map_err(LibraryError::io("clean up", &folder))?;
    }
    let folder = machine.folder();
    // Others write to the machine's file without holding it.
    let age = |name: &str| if name.contains(FILE) { OLD } else { Duration::ZERO };
    files::remove_temporaries(folder, age).map_err(LibraryError::io("clean up", folder))
}

/// Removes images that neither the present nor a snapshot needs. Returns those that are there still, and those that are used
/// by themselves; nothing where there is a checkpoint that nobody can read, which may need anything.
fn sweep(machine: &Machine) -> Result<Option<(Images, BTreeSet<String>)>, LibraryError> {
    sweep_parts(machine)?;
    let checkpoints = machine.checkpoints();
    if !checkpoints.can_be_read()? {
        return Ok(None);
    }
    let mut used: BTreeSet<String> = names(machine).collect();
    for saved in checkpoints.list()? {
        used.extend(names(&saved.machine(machine)?));
    }
    let mut images = Images::read(machine)?;
    let needed = images.closure(&used);
    let gone: Vec<String> = images.below.keys().filter(|n| is_overlay(n) && !needed.contains(*n)).cloned().collect();
    for name in gone {
        let path = images.folder.join(&name);
        std::fs::remove_file(&path).map_err(LibraryError::io("remove", &path))?;
        images.below.remove(&name);
    }
    Ok(Some((images, used)))
}

/// What is still to be done of a merge: what stood on `from` is to stand on `into`, which holds the same.
#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    from: String,
    into: String,
}

/// The images in a machine's folder of disks, and what stands on what.
struct Images {
    folder: PathBuf,
    /// By name: what it stands on, in this folder.
    below: BTreeMap<String, Option<String>>,
}

/// Whether a file is one that [`Machine::make_overlays`] makes: nothing else is ever removed or merged.
fn is_overlay(name: &str) -> bool {
    name.starts_with("disk-") && name.ends_with(".qcow2") && name.matches('-').count() == 2
}

/// Whether an image has this name alone, and may be written to.
pub(crate) fn is_own(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.nlink() == 1)
}

impl Images {
    fn read(machine: &Machine) -> Result<Images, LibraryError> {
        let folder = machine.folder().join(FOLDER);
        let mut below = BTreeMap::new();
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Images { folder, below }),
            entries => entries.map_err(LibraryError::io("read", &folder))?,
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !entry.path().is_file() || name == JOURNAL || name == REPLACEMENT || name.starts_with('.') {
                continue;
            }
            let facts = match disk::facts(&entry.path()) {
                Ok(facts) => Some(facts),
                // What it stands on can't be told, and might be taken for something that nobody needs.
                Err(error) if is_overlay(&name) => return Err(image(error)),
                // A file that is no image of ours stands on nothing.
                Err(_) => None,
            };
            let backing = facts.and_then(|facts| facts.backing).and_then(|backing| {
                let name = backing.file_name()?.to_str()?.to_string();
                // A path that leads there by another way is the same file.
                let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
                same(&folder.join(&name), &backing)?.then_some(name)
            });
            below.insert(name, backing);
        }
        Ok(Images { folder, below })
    }

    /// What these stand on, and they themselves.
    fn closure(&self, roots: &BTreeSet<String>) -> BTreeSet<String> {
        let mut needed = BTreeSet::new();
        let mut open: Vec<&String> = roots.iter().collect();
        while let Some(name) = open.pop() {
            if let Some(below) = self.below.get(name)
                && needed.insert(name.clone())
            {
                open.extend(below);
            }
        }
        needed
    }

    fn standing_on(&self, name: &str) -> Vec<String> {
        let on = self.below.iter().filter(|(_, below)| below.as_deref() == Some(name));
        on.map(|(above, _)| above.clone()).collect()
    }

    /// Two images that can be one: the lower is needed by the upper alone. Those in `fresh` are left as they are.
    fn mergeable(&self, used: &BTreeSet<String>, fresh: &BTreeSet<String>) -> Option<(String, String)> {
        self.below.iter().filter(|(upper, _)| !fresh.contains(*upper)).find_map(|(upper, lower)| {
            let lower = lower.as_ref()?;
            let above = self.standing_on(upper);
            let fits = !used.contains(lower)
                && self.standing_on(lower).len() == 1
                && is_overlay(upper)
                && [upper, lower].into_iter().chain(&above).all(|name| is_own(&self.folder.join(name)));
            fits.then(|| (upper.clone(), lower.clone()))
        })
    }
}

/// The names of the images that a machine's disks are, those in its folder.
fn names(machine: &Machine) -> impl Iterator<Item = String> + '_ {
    machine.config.disks.iter().filter_map(|disk| {
        let name = disk.path.strip_prefix(FOLDER).ok()?.to_str()?;
        Some(name.to_string())
    })
}

/// A machine that runs meanwhile: has its disks go on with other images.
pub(crate) type GoOn<'a> = &'a dyn Fn(Vec<DiskSwitch>) -> Result<(), LibraryError>;

impl Machine {
    /// What a running machine is told, so that its disks go on with these.
    pub(crate) fn switches(&self, overlays: &[Overlay]) -> Vec<DiskSwitch> {
        let switch =
            |overlay: &Overlay| DiskSwitch { disk: overlay.disk, path: self.resolve(&overlay.path), onto: None };
        overlays.iter().map(switch).collect()
    }
}

/// Removes images that nothing needs, and merges those that only one other needs. The caller holds the machine. `running`
/// has the disks of a machine that runs go on with other images.
///
/// Interrupted at any instant, it is done again the next time.
///
/// # Errors
/// The host refuses something, or `cancel` was set. What is needed is there in any case.
pub(crate) fn tidy(
    machine: &mut Machine,
    running: Option<GoOn<'_>>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), LibraryError> {
    finish_merge(machine, running)?;
    // Images that the guest has written to only since this began. They stay: to merge one would take another.
    let mut fresh = BTreeSet::new();
    loop {
        let Some((images, used)) = sweep(machine)? else { return Ok(()) };
        let Some((upper, lower)) = images.mergeable(&used, &fresh) else { return Ok(()) };
        let present: BTreeSet<String> = names(machine).collect();
        if present.contains(&upper)
            && let Some(go_on) = running
        {
            // The guest writes to it: it goes on with another, and this one stays as it is.
            let id = super::Checkpoints::new_id()?;
            let overlays = machine.make_overlays(&id)?;
            let changed = machine.with_overlays(&overlays);
            changed.write()?;
            if let Err(error) = go_on(changed.switches(&overlays)) {
                machine.write()?;
                machine.remove_overlays(&overlays);
                return Err(error);
            }
            *machine = changed;
            fresh.extend(names(machine));
        }
        let cancel = AtomicBool::new(false);
        let [from, into] = [&upper, &lower].map(|name| images.folder.join(name));
        let mut told = |done: u64, total: u64| {
            if !progress(done, total) {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let format = disk::facts(&into).map_err(image)?.format;
        match disk::commit(&from, &into, format, &mut told, &cancel) {
            Err(MergeError::Cancelled) => return Err(LibraryError::Cancelled),
            merged => merged.map_err(image)?,
        }
        let journal = serde_json::to_vec(&Journal { from: upper, into: lower }).unwrap_or_default();
        let path = images.folder.join(JOURNAL);
        files::write_atomic(&path, &journal).map_err(LibraryError::io("write", &path))?;
        finish_merge(machine, running)?;
    }
}

/// Has everything that stood on a merged image, or was it, use the one that it was merged into. The caller holds the machine.
///
/// # Errors
/// The host refuses something.
pub(crate) fn finish_merge(machine: &mut Machine, running: Option<GoOn<'_>>) -> Result<(), LibraryError> {
    let folder = machine.folder().join(FOLDER);
    let path = folder.join(JOURNAL);
    let Ok(text) = std::fs::read(&path) else { return Ok(()) };
    let Ok(Journal { from, into }) = serde_json::from_slice(&text) else {
        return std::fs::remove_file(&path).map_err(LibraryError::io("remove", &path));
    };
    let images = Images::read(machine)?;
    if images.below.contains_key(&from) && images.below.contains_key(&into) {
        let format = disk::facts(&folder.join(&into)).map_err(image)?.format;
        for above in images.standing_on(&from) {
            let path = Path::new(FOLDER).join(&above);
            match (running, machine.config.disks.iter().position(|disk| disk.path == path)) {
                // The guest writes to it at this moment.
                (Some(go_on), Some(disk)) => {
                    let onto = Some((PathBuf::from(&into), format));
                    go_on(vec![DiskSwitch { disk, path: machine.resolve(&path), onto }])?;
                }
                _ => disk::rebase_header(&folder.join(above), Some((Path::new(&into), format))).map_err(image)?,
            }
        }
        let rename = |machine: &mut Machine| {
            let mut changed = false;
            for disk in &mut machine.config.disks {
                if disk.path == Path::new(FOLDER).join(&from) {
                    disk.path = Path::new(FOLDER).join(&into);
                    changed = true;
                }
            }
            changed
        };
        let checkpoints = machine.checkpoints();
        for mut saved in checkpoints.list()? {
            let mut then = saved.machine(machine)?;
            if rename(&mut then) {
                saved.about.machine = then.text()?;
                checkpoints.describe(&saved.id, &saved.about)?;
            }
        }
        if rename(machine) {
            machine.write()?;
        }
        let from = folder.join(&from);
        std::fs::remove_file(&from).map_err(LibraryError::io("remove", &from))?;
    }
    std::fs::remove_file(&path).map_err(LibraryError::io("remove", &path))
}

#[cfg(test)]
#[path = "layers_tests.rs"]
mod tests;
