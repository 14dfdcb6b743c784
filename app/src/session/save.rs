//! Saving a machine that runs, and going on with one that was saved.

use vmm_core::vm::{CaptureError, Lifecycle, VmCommand};

use super::Session;
use crate::library::checkpoints::{ABOUT, About, Kind, SCREEN};
use crate::library::{Checkpoints, Timestamp};

/// The width of the picture that is kept with a checkpoint, pixels.
const PICTURE_WIDTH: u32 = 320;

/// An error and its causes, as one sentence.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl Session {
    /// Saves the machine and ends it. If that fails, or `progress` says no, it goes on as before.
    ///
    /// # Errors
    /// Why not, a sentence.
    pub(super) fn suspend(&self, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), String> {
        let checkpoints = self.checkpoints.as_ref().ok_or("this machine is not kept: there is nowhere to save it")?;
        let Ok(_one) = self.saving.try_lock() else { return Err("it is being saved already".into()) };
        let ran = self.vm.state() == Lifecycle::Running;
        match self.save(checkpoints, progress) {
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

    fn save(&self, checkpoints: &Checkpoints, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), String> {
        let id = Checkpoints::new_id().map_err(|error| words(&error))?;
        let about = About { kind: Kind::Suspended, created: Timestamp::now() };
        let captured = self.vm.capture(checkpoints.store(), &id, None, false);
        let captured = captured.map_err(|error: CaptureError| words(&error))?;
        let text = serde_json::to_vec_pretty(&about).map_err(|error| words(&error))?;
        captured.add(ABOUT, &text).map_err(|error| words(&error))?;
        // A screen that is off has no picture.
        let picture = self
            .screen
            .snapshot()
            .and_then(|(mode, pixels)| super::picture::png(mode, &pixels, Some(PICTURE_WIDTH)).ok());
        if let Some(picture) = picture {
            captured.add(SCREEN, &picture.png).map_err(|error| words(&error))?;
        }
        captured.write(progress).map_err(|error| words(&error))
    }

    /// Goes on with a machine that was restored from the checkpoint `id`, which it does once: from here on its disks are
    /// not what they were then.
    ///
    /// # Errors
    /// Why not, a sentence; the checkpoint is still there.
    pub(super) fn go_on(&self, id: &str) -> Result<(), String> {
        let checkpoints = self.checkpoints.as_ref().ok_or("this machine is not kept")?;
        checkpoints.store().remove(id).map_err(|error| words(&error))?;
        self.send(VmCommand::Resume)
    }
}
