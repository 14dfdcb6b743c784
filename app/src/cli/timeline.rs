//! `orangery timeline`.

use serde_json::json;

use super::CliError;
use super::args::{TimelineAct, Which};
use super::output::{ShownSnapshot, table};
use super::verbs::{Out, library};
use super::{Exit, snapshots};
use crate::jobs::verbs as jobs;
use crate::library::{Timeline, size};

/// Characters of an id that are shown.
const SHOWN_ID: usize = 8;

/// Does what the command line says of a timeline.
pub fn perform(out: Out, act: &TimelineAct) -> Result<(), CliError> {
    match act {
        TimelineAct::On { which, every, space } => {
            let timeline = Timeline { minutes: *every, space_mib: space >> 20 };
            timeline.validate().map_err(|why| CliError::Words(Exit::Usage, why))?;
            jobs::set_timeline(&library()?, &which.name, Some(timeline))?;
            let text = format!("{:?}: a checkpoint every {every} minutes while it runs", which.name);
            out.say(&json!({ "timeline": timeline }), &text);
            Ok(())
        }
        TimelineAct::Off { which } => {
            jobs::set_timeline(&library()?, &which.name, None)?;
            out.say(&json!({ "timeline": null }), &format!("{:?}: no checkpoints any more", which.name));
            Ok(())
        }
        TimelineAct::List { which } => list(out, which),
        TimelineAct::Restore { which, checkpoint, around } => snapshots::restore(out, which, checkpoint, None, *around),
        TimelineAct::Copy { which, checkpoint, new } => {
            snapshots::clone(out, which, new.clone(), Some(checkpoint.clone()), true)
        }
        TimelineAct::Delete { which, checkpoint } => snapshots::delete(out, which, checkpoint),
    }
}

fn list(out: Out, which: &Which) -> Result<(), CliError> {
    let machine = library()?.load(&which.name)?;
    let points: Vec<ShownSnapshot> = machine.timeline_points()?.into_iter().map(Into::into).collect();
    let mut rows = vec![["CHECKPOINT", "TAKEN", "STATE", "SIZE"].map(String::from).to_vec()];
    for point in &points {
        let here = if point.present { " (you are here)" } else { "" };
        rows.push(vec![
            format!("{}{here}", point.id.get(..SHOWN_ID).unwrap_or(&point.id)),
            point.created.to_string(),
            if point.running { "running" } else { "off" }.into(),
            size::human(point.size),
        ]);
    }
    let text = match (points.is_empty(), machine.timeline) {
        (false, _) => table(&rows),
        (true, Some(_)) => "Its timeline has no checkpoint yet: they are taken while it runs".into(),
        (true, None) => "It has no timeline. Begin one with: orangery timeline on MACHINE".into(),
    };
    out.say(&points, &text);
    Ok(())
}
