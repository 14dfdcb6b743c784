//! Snapshots: points in a machine's life that it can go back to, in a tree. Each has the machine's file as it was, its disks'
//! images, which stay as they were, and, of a machine that ran, its RAM.
//!
//! Whoever changes anything here holds the machine: the process that runs it, or one that has its lock.

use std::path::{Path, PathBuf};

use super::checkpoints::{ABOUT, About, Kind};
use super::layers::{self, GoOn};
use super::{Checkpoints, LibraryError, Machine, Saved, Timestamp, files, name};
use vmm_core::config::Boot;

/// The folder of the TPM's state in a snapshot of a machine that was off, and the file of its UEFI variables.
const TPM: &str = "tpm";
const VARIABLES: &str = "nvram.fd";
/// The least of an id that means a checkpoint.
const SHORTEST_ID: usize = 4;

/// A snapshot as a person sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name for programs.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What was written of it.
    pub note: String,
    /// When it was taken.
    pub created: Timestamp,
    /// What it came after.
    pub parent: Option<String>,
    /// It has RAM: the machine ran.
    pub running: bool,
    /// What its own files take on the host, bytes: RAM, and the images that stand still with it.
    pub size: u64,
    /// The present stands on it.
    pub is_present: bool,
}

impl Machine {
    /// Its snapshots, the oldest first.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, LibraryError> {
        self.points(Kind::Snapshot)
    }

    /// Its points of one kind, the oldest first.
    pub(super) fn points(&self, kind: Kind) -> Result<Vec<Snapshot>, LibraryError> {
        let checkpoints = self.checkpoints();
        let all = checkpoints.list()?;
        // Points of other kinds in between are not seen.
        let seen = |mut id: Option<String>| {
            for _ in 0..=all.len() {
                let Some(at) = id.as_ref().and_then(|id| all.iter().find(|saved| saved.id == *id)) else { break };
                if at.about.kind == kind {
                    return id;
                }
                id.clone_from(&at.about.parent);
            }
            id
        };
        let present = seen(self.present.clone());
        let snapshot = |saved: &Saved| {
            let path = checkpoints.store().path(&saved.id);
            let then = saved.machine(self).ok();
            let disks = then.iter().flat_map(|then| &then.config.disks).map(|disk| used(&self.resolve(&disk.path)));
            Snapshot {
                running: has_ram(&path),
                size: files::of(&path).iter().map(|file| used(file)).chain(disks).sum(),
                is_present: present.as_ref() == Some(&saved.id),
                id: saved.id.clone(),
                name: saved.about.name.clone(),
                note: saved.about.note.clone(),
                created: saved.about.created,
                parent: seen(saved.about.parent.clone()),
            }
        };
        Ok(all.iter().filter(|saved| saved.about.kind == kind).map(snapshot).collect())
    }

    /// What everything that is saved of it takes on the host, with the images in which its disks stay as they were, bytes. The
    /// image that a disk began with is not among it: the present needs that as well.
    pub(super) fn saved_size(&self) -> Result<u64, LibraryError> {
        let images = layers::overlays_below(self).iter().map(|image| used(image)).sum::<u64>();
        Ok(self.checkpoints().store().size()? + images)
    }

    /// The snapshot of this name or id; of several with one name the youngest. A checkpoint of the timeline is meant by its id, or
    /// as much of it as is needed to tell it from others.
    ///
    /// # Errors
    /// There is none.
    pub fn snapshot(&self, wanted: &str) -> Result<Saved, LibraryError> {
        let wanted = wanted.trim();
        let all = self.checkpoints().list()?;
        let named = |saved: &&Saved| saved.about.kind == Kind::Snapshot && name::same(&saved.about.name, wanted);
        let exact = |saved: &&Saved| saved.about.kind != Kind::Suspended && saved.id == wanted;
        let begins = |saved: &&Saved| saved.about.kind == Kind::Timeline && saved.id.starts_with(wanted);
        let mut short = all.iter().filter(begins).take(if wanted.len() < SHORTEST_ID { 0 } else { 2 });
        let only = short.next().filter(|_| short.next().is_none());
        let found = all.iter().rfind(exact).or_else(|| all.iter().rfind(named)).or(only);
        found.cloned().ok_or_else(|| LibraryError::NoSnapshot { machine: self.name.clone(), name: wanted.into() })
    }

    /// What is said of a snapshot that is taken now.
    ///
    /// # Errors
    /// The name is none.
    pub(crate) fn about_snapshot(&self, name: &str, note: &str) -> Result<About, LibraryError> {
        Ok(About { name: name::check(name)?, note: note.trim().into(), ..self.about_now(Kind::Snapshot)? })
    }

    /// What is said of a checkpoint that is taken now and has no name.
    ///
    /// # Errors
    /// The machine's file can't be written.
    pub(crate) fn about_now(&self, kind: Kind) -> Result<About, LibraryError> {
        Ok(About {
            kind,
            created: Timestamp::now(),
            name: String::new(),
            note: String::new(),
            parent: self.present.clone(),
            machine: self.text()?,
        })
    }

    /// Gives a snapshot another name and note; a checkpoint of the timeline becomes a snapshot by that, and stays. The caller holds
    /// the machine.
    ///
    /// # Errors
    /// There is none, the name is none, or the file can't be written.
    pub fn describe_snapshot(&self, wanted: &str, name: &str, note: &str) -> Result<(), LibraryError> {
        let mut saved = self.snapshot(wanted)?;
        saved.about.name = name::check(name)?;
        saved.about.note = note.trim().into();
        saved.about.kind = Kind::Snapshot;
        self.checkpoints().describe(&saved.id, &saved.about)
    }

    /// Takes a snapshot of the machine, which is off. The caller has its lock.
    ///
    /// # Errors
    /// The name is none, a disk can't be part of it, or the host has no room. The machine is what it was then.
    pub fn take_snapshot(&mut self, name: &str, note: &str) -> Result<String, LibraryError> {
        self.finish_what_was_begun()?;
        if self.goes_on_from()?.is_some() {
            return Err(LibraryError::Suspended { name: self.name.clone() });
        }
        let about = self.about_snapshot(name, note)?;
        self.take_at_rest(&about)
    }

    /// Takes a point of the machine, which is off and not suspended.
    fn take_at_rest(&mut self, about: &About) -> Result<String, LibraryError> {
        let checkpoints = self.checkpoints();
        let id = Checkpoints::new_id()?;
        let overlays = self.make_overlays(&id)?;
        let mut changed = self.with_overlays(&overlays);
        let written = (|| {
            // The new images read as the old ones do. From here on a start writes to them: never to what a snapshot has.
            changed.write()?;
            let draft = checkpoints.store().begin(&id)?;
            draft.add(ABOUT, &about.text())?;
            for (name, path) in self.loose_files()? {
                let bytes = std::fs::read(&path).map_err(LibraryError::io("read", &path))?;
                draft.add(&name, &bytes)?;
            }
            Ok(draft.write_off(&self.resolved())?)
        })();
        if let Err(error) = written {
            // One that is there after all keeps its images.
            match checkpoints.store().has(&id) {
                true => *self = changed,
                false => _ = self.go_back_to_images(&overlays),
            }
            return Err(error);
        }
        changed.present = Some(id.clone());
        *self = changed;
        self.write()?;
        Ok(id)
    }

    /// Takes a checkpoint of the timeline, if it has one, of what it is now: something is about to be done that loses that. What it
    /// is suspended in needs none. The caller has the lock of the machine, which is off.
    ///
    /// # Errors
    /// A disk can't be part of it, or the host has no room. The machine is what it was then.
    pub(crate) fn keep_on_timeline(&mut self) -> Result<(), LibraryError> {
        if self.timeline.is_some() && self.goes_on_from()?.is_none() {
            self.take_at_rest(&self.about_now(Kind::Timeline)?)?;
        }
        Ok(())
    }

    /// Does what is left to be done where an operation was interrupted. The caller has the lock of the machine, which is off.
    ///
    /// # Errors
    /// It was to go back to a snapshot, and can't yet. What only costs space is no error.
    pub(crate) fn finish_what_was_begun(&mut self) -> Result<(), LibraryError> {
        self.finish_restore()?;
        let _ = layers::recover(self);
        Ok(())
    }

    /// Files beside the disks that a machine that is off keeps: its UEFI variables and its TPM's state.
    pub(super) fn loose_files(&self) -> Result<Vec<(String, PathBuf)>, LibraryError> {
        let mut loose = Vec::new();
        if let Some(path) = self.variables().filter(|path| path.is_file()) {
            loose.push((VARIABLES.to_string(), path));
        }
        for path in files::of(&self.tpm()) {
            if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with("tpm2-"))
            {
                loose.push((format!("{TPM}-{name}"), path.clone()));
            }
        }
        Ok(loose)
    }

    pub(super) fn variables(&self) -> Option<PathBuf> {
        match &self.config.boot {
            Boot::Uefi { variables: Some(path), .. } => Some(self.resolve(path)),
            _ => None,
        }
    }

    /// Goes back to a snapshot: what the machine is now is given up, but for its name; one with a timeline keeps it there, unless
    /// it `is_kept` already. Its next start goes on from there. The caller has its lock.
    ///
    /// # Errors
    /// The snapshot can't be used, or the host has no room. The machine is what it was then.
    pub fn restore_snapshot(&mut self, wanted: &str, is_kept: bool) -> Result<(), LibraryError> {
        self.finish_what_was_begun()?;
        let saved = self.snapshot(wanted)?;
        let checkpoints = self.checkpoints();
        let running = has_ram(&checkpoints.store().path(&saved.id));
        // What can't be read is found before anything is given up.
        checkpoints.store().load(&saved.id)?;
        let mut then = saved.machine(self)?;
        if !is_kept {
            self.keep_on_timeline()?;
        }
        (then.id, then.name, then.created) = (self.id.clone(), self.name.clone(), self.created);
        then.timeline = self.timeline;
        let overlays = then.make_overlays(&Checkpoints::new_id()?)?;
        let mut changed = then.with_overlays(&overlays);
        changed.present = Some(saved.id.clone());
        changed.resume = running.then(|| saved.id.clone());
        changed.restoring = Some(saved.id);
        if let Err(error) = changed.write() {
            self.go_back_to_images(&overlays);
            return Err(error);
        }
        *self = changed;
        // With what was written since the last snapshot.
        self.finish_what_was_begun()
    }

    /// Does what is left of going back to a snapshot. The caller holds the machine.
    ///
    /// # Errors
    /// The files can't be changed: it can't be started, nor anything be done to its snapshots, before that is mended.
    pub(crate) fn finish_restore(&mut self) -> Result<(), LibraryError> {
        let Some(id) = self.restoring.clone() else { return Ok(()) };
        let checkpoints = self.checkpoints();
        let path = checkpoints.store().path(&id);
        if checkpoints.store().has(&id) && !has_ram(&path) {
            self.put_loose_files(&kept_files(&path))?;
        }
        match (self.timeline, checkpoints.suspended()?) {
            (Some(_), Some(mut saved)) => {
                saved.about.kind = Kind::Timeline;
                checkpoints.describe(&saved.id, &saved.about)?;
            }
            _ => checkpoints.discard_suspended()?,
        }
        self.restoring = None;
        self.write()
    }

    /// Puts the files of a snapshot, or of another machine, in the place of the machine's own: each by the name that it is kept
    /// under.
    pub(super) fn put_loose_files(&self, kept: &[(String, PathBuf)]) -> Result<(), LibraryError> {
        let copy = |from: &Path, to: &Path| {
            let bytes = std::fs::read(from).map_err(LibraryError::io("read", from))?;
            files::write_atomic(to, &bytes).map_err(LibraryError::io("write", to))
        };
        if let Some(to) = self.variables() {
            match kept.iter().find(|(name, _)| name == VARIABLES) {
                Some((_, from)) => copy(from, &to)?,
                // It had none yet.
                None if to.is_file() => std::fs::remove_file(&to).map_err(LibraryError::io("remove", &to))?,
                None => {}
            }
        }
        for newer in files::of(&self.tpm()) {
            let name = newer.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // The TPM's state is of one moment.
            if name.starts_with("tpm2-") && !kept.iter().any(|(other, _)| *other == format!("{TPM}-{name}")) {
                std::fs::remove_file(&newer).map_err(LibraryError::io("remove", &newer))?;
            }
        }
        for (name, from) in kept {
            if let Some(name) = name.strip_prefix(TPM).and_then(|name| name.strip_prefix('-')) {
                super::make_folders(&self.tpm())?;
                copy(from, &self.tpm().join(name))?;
            }
        }
        Ok(())
    }

    /// Deletes a snapshot; what came after it comes after its parent then. Its disks' images are merged with what stands on
    /// them: that takes time, may be given up, and is done the next time then. `running` has the disks of a machine that runs go
    /// on with other images.
    ///
    /// # Errors
    /// There is none of that name, or the host refuses something. Whatever happens, all other states are what they were.
    pub(crate) fn delete_snapshot(
        &mut self,
        wanted: &str,
        running: Option<GoOn<'_>>,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), LibraryError> {
        self.finish_restore()?;
        let saved = self.snapshot(wanted)?;
        let checkpoints = self.checkpoints();
        for mut child in checkpoints.list()? {
            if child.about.parent.as_ref() == Some(&saved.id) {
                child.about.parent.clone_from(&saved.about.parent);
                checkpoints.describe(&child.id, &child.about)?;
            }
        }
        if self.present.as_ref() == Some(&saved.id) {
            self.present.clone_from(&saved.about.parent);
            if self.resume.as_ref() == Some(&saved.id) {
                self.resume = None;
            }
            self.write()?;
        }
        checkpoints.store().remove(&saved.id)?;
        layers::tidy(self, running, progress)?;
        Ok(checkpoints.store().compact(progress)?)
    }

    /// [`Machine::delete_snapshot`] of a machine that does not run. The caller has its lock.
    ///
    /// # Errors
    /// As there.
    pub fn delete_snapshot_at_rest(
        &mut self,
        wanted: &str,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), LibraryError> {
        self.delete_snapshot(wanted, None, progress)
    }
}

pub(super) fn has_ram(checkpoint: &Path) -> bool {
    std::fs::metadata(checkpoint.join("state")).is_ok_and(|meta| meta.len() > 0)
}

/// The files of a snapshot, by name.
pub(super) fn kept_files(checkpoint: &Path) -> Vec<(String, PathBuf)> {
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.to_string(), path));
    files::of(checkpoint).into_iter().filter_map(named).collect()
}

/// What a file takes on the host, bytes.
fn used(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(file).map_or(0, |meta| meta.blocks() * 512)
}
