//! Saving a machine that runs, and going on with one that was saved.

use std::time::{Duration, Instant};

use vmm_core::base::explain;
use vmm_core::vm::{Captured, DiskSwitch, Lifecycle, VmCommand};

use super::Session;
use super::turns::Turn;
use crate::library::checkpoints::{ABOUT, About, Kind, SCREEN};
use crate::library::{Checkpoints, Library, LibraryError, Machine, Timeline, Timestamp, files};

/// The width of the picture that is kept with a checkpoint, pixels.
const PICTURE_WIDTH: u32 = 320;
/// How long something waits for its turn that is done in no time: whoever asks for it hears nothing meanwhile.
const SHORT_WAIT: Duration = Duration::from_secs(5);
/// Seconds until the timeline looks again, when somebody else has the turn.
const NEXT_TURN: u64 = 1;

fn said(error: impl std::error::Error + 'static) -> String {
    explain(&error)
}

type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

impl Session {
    /// The machine as the library has it, and the right to change what is saved of it: once others are done with that, or not
    /// at all once `progress` says no.
    fn kept(&self, progress: Progress<'_>) -> Result<(Machine, Turn<'_>), String> {
        let library = self.kept_in()?;
        let turn = self.turns.take(|| progress(0, 1)).ok_or("it was cancelled")?;
        if self.vm.state() == Lifecycle::Stopped {
            return Err("it has stopped".into());
        }
        Ok((library.load(&self.id).map_err(said)?, turn))
    }

    /// The same for what is done in no time: it waits no longer than [`SHORT_WAIT`].
    fn kept_soon(&self) -> Result<(Machine, Turn<'_>), String> {
        let until = Instant::now() + SHORT_WAIT;
        let mut late = false;
        let kept = self.kept(&mut |_, _| {
            late = Instant::now() >= until;
            !late
        });
        let busy = "something else is being done with what is saved of it; try again when that is done";
        if late { Err(busy.into()) } else { kept }
    }

    /// The library that it is kept in.
    fn kept_in(&self) -> Result<&Library, String> {
        let why = match self.without_saving {
            true => "it runs without saving: what happens in it is gone when it ends",
            false => "this machine is not kept: there is nowhere to save it",
        };
        self.library.as_ref().ok_or_else(|| why.into())
    }

    /// Saves the machine and ends it. If that fails, or `progress` says no, it goes on as before.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn suspend(&self, progress: Progress<'_>) -> Result<(), String> {
        let (machine, _turn) = self.kept(progress)?;
        let ran = self.vm.state() == Lifecycle::Running;
        let saved = (|| {
            let about = machine.about_now(Kind::Suspended).map_err(said)?;
            let id = Checkpoints::new_id().map_err(said)?;
            let last = machine.present.as_deref();
            let captured = self.vm.capture(machine.checkpoints().store(), &id, last, false, Vec::new());
            self.describe(captured.map_err(said)?, &about)?.write(progress).map_err(said)
        })();
        match saved {
            Ok(()) => {
                self.note("Suspended.");
                self.send(VmCommand::PowerOff)
            }
            Err(why) => {
                self.note(&format!("It could not be suspended: {why}."));
                if ran && self.vm.state() == Lifecycle::Paused {
                    // Refused only by a machine that has stopped.
                    let _ = self.send(VmCommand::Resume);
                }
                Err(why)
            }
        }
    }

    /// Adds what we say of a checkpoint, and a picture of the screen.
    fn describe(&self, captured: Captured, about: &About) -> Result<Captured, String> {
        captured.add(ABOUT, &about.text()).map_err(said)?;
        // A screen that is off has no picture.
        let picture = self
            .screen
            .snapshot()
            .and_then(|(mode, pixels)| super::picture::png(mode, &pixels, Some(PICTURE_WIDTH)).ok());
        if let Some(picture) = picture {
            captured.add(SCREEN, &picture.png).map_err(said)?;
        }
        Ok(captured)
    }

    /// Takes a snapshot while the guest runs.
    ///
    /// # Errors
    /// Why not, a sentence. The machine runs on in any case.
    pub(super) fn take_snapshot(&self, name: &str, note: &str, progress: Progress<'_>) -> Result<(), String> {
        let (machine, _turn) = self.kept(progress)?;
        let about = machine.about_snapshot(name, note).map_err(said)?;
        let stopped = self.take(machine, &about, progress)?;
        self.note(&format!(
            "Took the snapshot {:?}; the guest was stopped for {} ms.",
            about.name,
            stopped.as_millis()
        ));
        Ok(())
    }

    /// Takes a point while the guest runs, and says how long it was stopped.
    fn take(&self, machine: Machine, about: &About, progress: Progress<'_>) -> Result<Duration, String> {
        let id = Checkpoints::new_id().map_err(said)?;
        // Most of what the guest has written is on the disk before it is stopped.
        for disk in machine.config.disks.iter().filter(|disk| !disk.readonly) {
            let _ = std::fs::File::open(machine.resolve(&disk.path)).and_then(|file| file.sync_data());
        }
        let overlays = machine.make_overlays(&id).map_err(said)?;
        // The new images read as the old ones do. From here on a start uses them: what the guest writes is never lost.
        let mut changed = machine.with_overlays(&overlays);
        let undo = |why: String| {
            // Only where the machine goes on with the old images.
            machine.go_back_to_images(&overlays);
            why
        };
        changed.write().map_err(|error| undo(said(error)))?;
        let last = machine.present.as_deref();
        let switches = changed.switches(&overlays);
        let captured = self.vm.capture(machine.checkpoints().store(), &id, last, true, switches);
        let captured = captured.map_err(|error| undo(said(error)))?;
        let stopped = captured.stopped();
        self.describe(captured, about)?.write(progress).map_err(said)?;
        changed.present = Some(id);
        changed.write().map_err(said)?;
        Ok(stopped)
    }

    /// Does what loses something of the machine, after a point of the timeline was taken, if it has one.
    ///
    /// # Errors
    /// Why not, a sentence.
    #[cfg(feature = "gui")]
    pub(super) fn lose(&self, loss: crate::console::Loss, progress: Progress<'_>) -> Result<(), String> {
        self.keep_on_timeline(progress)?;
        self.send(loss.command())
    }

    /// Sets how the machine's timeline is kept from now on, or that it has none.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn set_timeline(&self, timeline: Option<Timeline>) -> Result<(), String> {
        timeline.map_or(Ok(()), |timeline| timeline.validate())?;
        let (mut machine, _turn) = self.kept_soon()?;
        machine.timeline = timeline;
        machine.write().map_err(said)
    }

    /// Takes a point of the timeline, if the machine has one: something is about to be done that loses what it is now.
    ///
    /// # Errors
    /// Why it could not be taken, a sentence.
    pub(super) fn keep_on_timeline(&self, progress: Progress<'_>) -> Result<(), String> {
        // What is not kept loses nothing more, and one without a timeline waits for nobody.
        let Some(library) = &self.library else { return Ok(()) };
        if library.load(&self.id).map_err(said)?.timeline.is_none() || self.vm.state() == Lifecycle::Stopped {
            return Ok(());
        }
        let (machine, _turn) = self.kept(progress)?;
        self.take_point(machine, progress)
    }

    /// Takes a point of the timeline.
    fn take_point(&self, machine: Machine, progress: Progress<'_>) -> Result<(), String> {
        let about = machine.about_now(Kind::Timeline).map_err(said)?;
        let stopped = self.take(machine, &about, progress)?;
        self.note(&format!("A checkpoint for the timeline; the guest was stopped for {} ms.", stopped.as_millis()));
        Ok(())
    }

    /// Takes the next point of the timeline if it is due, and removes those that are too many. Says in how many seconds to look
    /// again; nothing where the machine has no timeline. While somebody else changes what is saved it only looks again soon.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn go_on_with_timeline(&self) -> Result<Option<u64>, String> {
        let library = self.kept_in()?;
        let Some(_turn) = self.turns.take_if_free() else { return Ok(Some(NEXT_TURN)) };
        let mut machine = library.load(&self.id).map_err(said)?;
        let Some(plan) = machine.timeline else { return Ok(None) };
        let now = Timestamp::now();
        let points = machine.timeline_points().map_err(said)?;
        // The first one at once: whoever begins a timeline has a point to go back to.
        let due = points.last().map_or(0, |point| plan.due(point.created.max(self.since), now));
        match due {
            0 if self.vm.state() == Lifecycle::Running => {}
            0 => return Ok(Some(1)),
            due => return Ok(Some(due)),
        }
        self.take_point(machine, &mut |_, _| !self.has_stopped())?;
        machine = library.load(&self.id).map_err(said)?;
        let go_on = |disks: Vec<DiskSwitch>| self.vm.switch_disks(disks).map_err(LibraryError::Machine);
        machine.thin_timeline(plan, Some(&go_on), &mut |_, _| !self.has_stopped()).map_err(said)?;
        Ok(Some(plan.due(now, Timestamp::now())))
    }

    /// Deletes a snapshot while the guest runs.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn delete_snapshot(&self, name: &str, progress: Progress<'_>) -> Result<(), String> {
        let (mut machine, _turn) = self.kept(progress)?;
        let go_on = |disks: Vec<DiskSwitch>| self.vm.switch_disks(disks).map_err(LibraryError::Machine);
        machine.delete_snapshot(name, Some(&go_on), progress).map_err(said)?;
        self.note(&format!("Deleted the snapshot {name:?}."));
        Ok(())
    }

    /// Gives a snapshot another name and note.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn describe_snapshot(&self, snapshot: &str, name: &str, note: &str) -> Result<(), String> {
        let (machine, _turn) = self.kept_soon()?;
        machine.describe_snapshot(snapshot, name, note).map_err(said)
    }

    /// Makes a machine that goes on from this moment as well, with RAM and disks that both share until they write to them.
    ///
    /// # Errors
    /// Why not, a sentence. This machine runs on in any case.
    pub(super) fn fork(&self, name: &str, progress: Progress<'_>) -> Result<(), String> {
        let library = self.kept_in()?;
        let (machine, _turn) = self.kept(progress)?;
        let id = Checkpoints::new_id().map_err(said)?;
        let overlays = machine.make_overlays(&id).map_err(said)?;
        let changed = machine.with_overlays(&overlays);
        let undo = |why: String| {
            machine.go_back_to_images(&overlays);
            why
        };
        // From before another has the images that it writes to: whenever this process ends, it goes on with its own.
        changed.write().map_err(|error| undo(said(error)))?;
        let fork = library.make_fork(&machine, name).map_err(|error| undo(said(error)))?;
        let give_up = |why: String| {
            let _ = std::fs::remove_dir_all(fork.folder());
            why
        };
        let (checkpoint, stopped) =
            self.vm.fork(changed.switches(&overlays)).map_err(|error| undo(give_up(said(error))))?;
        let headless = self.raise.get().is_none();
        super::launch::launch_fork(library.root(), &fork, headless, &checkpoint)
            .map_err(|error| give_up(said(error)))?;
        self.note(&format!("Forked {:?}; the guest was stopped for {} µs.", fork.name, stopped.as_micros()));
        Ok(())
    }

    /// The same with the first name that is free, which it returns.
    ///
    /// # Errors
    /// As there.
    #[cfg(feature = "gui")]
    pub(super) fn fork_anew(&self, progress: Progress<'_>) -> Result<String, String> {
        let library = self.kept_in()?;
        let machine = library.load(&self.id).map_err(said)?;
        let name = library.free_fork_name(&machine.name).map_err(said)?;
        self.fork(&name, progress)?;
        Ok(name)
    }

    /// The points of the timeline, the oldest first, with their pictures.
    ///
    /// # Errors
    /// Why they can't be read, a sentence.
    #[cfg(feature = "gui")]
    pub(super) fn past(&self) -> Result<Vec<crate::console::Point>, String> {
        let library = self.kept_in()?;
        let machine = library.load(&self.id).map_err(said)?;
        let points = machine.timeline_points().map_err(said)?;
        let point = |point: crate::library::snapshots::Snapshot| crate::console::Point {
            picture: crate::manager::snapshot_picture(&machine, &point.id),
            id: point.id,
            taken: point.created,
        };
        Ok(points.into_iter().map(point).collect())
    }

    /// Keeps a timeline from now on.
    ///
    /// # Errors
    /// Why not, a sentence.
    #[cfg(feature = "gui")]
    pub(super) fn begin_timeline(&self) -> Result<(), String> {
        self.set_timeline(Some(Timeline::default()))?;
        self.alarm.ring();
        Ok(())
    }

    /// Takes a last point of the timeline and has another process end this one, and go on from the point `id`.
    ///
    /// # Errors
    /// Why not, a sentence. This machine runs on then.
    #[cfg(feature = "gui")]
    pub(super) fn go_back(&self, id: &str, progress: Progress<'_>) -> Result<(), String> {
        let library = self.kept_in()?;
        let machine = {
            let (machine, _turn) = self.kept(progress)?;
            machine.snapshot(id).map_err(said)?;
            let about = machine.about_now(Kind::Timeline).map_err(said)?;
            self.take(machine.clone(), &about, progress)?;
            machine
        };
        self.note("Going back to a checkpoint of the timeline.");
        super::launch::go_back(library.root(), &machine, id).map_err(said)
    }

    /// Opens a point of the timeline as a machine of its own, and returns its name.
    ///
    /// # Errors
    /// Why not, a sentence.
    #[cfg(feature = "gui")]
    pub(super) fn open_copy(&self, id: &str, progress: Progress<'_>) -> Result<String, String> {
        let library = self.kept_in()?;
        let made = {
            let (mut machine, _turn) = self.kept(progress)?;
            let name = library.free_fork_name(&machine.name).map_err(said)?;
            let wish = crate::library::CloneWish { of: Some(id.into()), name, full: false };
            library.clone_machine(&mut machine, &wish, progress).map_err(said)?
        };
        super::launch::launch(library, &made, super::Manner::default()).map_err(said)?;
        Ok(made.name)
    }

    /// Goes on with a machine that was forked off: it makes new random numbers.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn go_on_as_fork(&self) -> Result<(), String> {
        self.send(VmCommand::NewGeneration { id: files::random_bytes().map_err(said)? })?;
        self.send(VmCommand::Resume)
    }

    /// Goes on with a machine that was restored from the checkpoint `id`. What it was suspended in it goes on from once:
    /// from here on its disks are not what they were then. One that goes back to a snapshot makes new random numbers.
    ///
    /// # Errors
    /// Why not, a sentence; the checkpoint is still there.
    pub(super) fn go_on(&self, id: &str) -> Result<(), String> {
        let (mut machine, _turn) = self.kept_soon()?;
        if machine.resume.as_deref() == Some(id) {
            machine.resume = None;
            machine.write().map_err(said)?;
            self.send(VmCommand::NewGeneration { id: files::random_bytes().map_err(said)? })?;
        } else {
            machine.checkpoints().store().remove(id).map_err(said)?;
        }
        self.send(VmCommand::Resume)
    }
}
