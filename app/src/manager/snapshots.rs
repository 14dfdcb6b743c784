//! What the workers read of a machine's snapshots.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use egui::ColorImage;

use super::model::{Snapshot, Snapshots};
use super::service::{decode, failure};
use crate::library::Machine;
use crate::library::checkpoints::SCREEN;

/// The most that is read of a snapshot's picture, bytes.
const MAX_PICTURE: u64 = 8 << 20;

/// A machine's snapshots as they are now.
pub fn read(machine: &Machine) -> Snapshots {
    let name = machine.name.clone();
    let all = machine.snapshots().map_err(|error| {
        let next = "Check that its folder is there and can be read.";
        failure(format!("The snapshots of {name} can't be read"), &error, Some(next))
    });
    let shown = |one: crate::library::snapshots::Snapshot| {
        let taken = one.created.local();
        let crate::library::snapshots::Snapshot { id, name, note, created: _, parent, running, size, is_present } = one;
        Snapshot { id, name, note, taken, parent, running, size, is_present }
    };
    Snapshots::new(name, all.map(|all| all.into_iter().map(shown).collect()))
}

/// A snapshot's screen; `None` when it had none, or the file makes no sense.
pub fn picture(machine: &Machine, id: &str) -> Option<ColorImage> {
    let path = machine.checkpoints().store().path(id).join(SCREEN);
    decode(&bounded(&path)?)
}

fn bounded(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_PICTURE).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
