//! What the workers read of a machine's snapshots.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use egui::ColorImage;

use super::model::{Snapshot, Snapshots};
use super::service::{decode, failure};
use crate::library::Machine;
use crate::library::checkpoints::SCREEN;
use crate::library::snapshots::Snapshot as Point;

/// The most that is read of a snapshot's picture, bytes.
const MAX_PICTURE: u64 = 8 << 20;

/// A machine's snapshots as they are now.
pub fn read(machine: &Machine) -> Snapshots {
    let name = machine.name.clone();
    let next = "Check that its folder is there and can be read.";
    let read = machine.snapshots().and_then(|all| Ok((all, machine.timeline_points()?)));
    match read {
        Ok((all, timeline)) => {
            let shown = |all: Vec<Point>, is_checkpoint| all.into_iter().map(|one| shown(one, is_checkpoint)).collect();
            Snapshots::new(name, Ok(shown(all, false))).with_timeline(shown(timeline, true), machine.timeline)
        }
        Err(error) => {
            let failure = failure(format!("The snapshots of {name} can't be read"), &error, Some(next));
            Snapshots::new(name, Err(failure))
        }
    }
}

fn shown(one: Point, is_checkpoint: bool) -> Snapshot {
    let taken = one.created.local();
    let Point { id, name, note, created: _, parent, running, size, is_present } = one;
    let name = if is_checkpoint { format!("Checkpoint {taken}") } else { name };
    Snapshot { id, name, note, taken, parent, running, size, is_present, is_checkpoint }
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
