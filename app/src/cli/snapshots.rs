//! `orangery snapshot`.

use std::collections::BTreeSet;

use serde_json::json;

use super::CliError;
use super::args::{RestoreArgs, SnapshotAct, Which};
use super::output::{ShownSnapshot, table};
use super::verbs::{Out, library, told};
use crate::jobs::{Present, verbs};
use crate::library::diff::Diff;
use crate::library::{CloneWish, size};
use crate::session::{self, Manner};

/// Does what the command line says of snapshots.
pub fn perform(out: Out, act: &SnapshotAct) -> Result<(), CliError> {
    match act {
        SnapshotAct::Take { which, snapshot, note } => {
            let mut progress = told(out, &which.name, "saving its memory");
            let machine = verbs::take_snapshot(&library()?, &which.name, snapshot, note, &mut progress)?;
            out.say(&json!({ "done": "taken" }), &format!("{:?}: took the snapshot {snapshot:?}", machine.name));
        }
        SnapshotAct::List { which } => {
            let snapshots: Vec<ShownSnapshot> =
                library()?.load(&which.name)?.snapshots()?.into_iter().map(Into::into).collect();
            out.say(&snapshots, &tree(&snapshots));
        }
        SnapshotAct::Restore { which, snapshot, keep, around } => {
            restore(out, which, snapshot, keep.clone(), *around)?;
        }
        SnapshotAct::Edit { which, snapshot, name, note } => {
            let (name, note) = (name.as_deref(), note.as_deref());
            let machine = verbs::describe_snapshot(&library()?, &which.name, snapshot, name, note)?;
            out.say(&json!({ "done": "edited" }), &format!("{:?}: edited the snapshot {snapshot:?}", machine.name));
        }
        SnapshotAct::Diff { which, before, after } => {
            let diff = library()?.load(&which.name)?.diff(before, after.as_deref())?;
            out.say(&shown(&diff), &told_diff(&diff));
        }
        SnapshotAct::Delete { which, snapshot } => {
            delete(out, which, snapshot)?;
        }
    }
    Ok(())
}

/// Goes back to a snapshot or a checkpoint of the timeline.
pub fn restore(
    out: Out,
    which: &Which,
    point: &str,
    keep: Option<String>,
    around: RestoreArgs,
) -> Result<(), CliError> {
    let library = library()?;
    let present = Present { keep, power_off: around.power_off, first: around.first.into() };
    let mut progress = told(out, &which.name, "saving its memory");
    let machine = verbs::restore_snapshot(&library, &which.name, point, &present, &mut progress)?;
    drop(progress);
    if around.start {
        session::launch(&library, &machine, Manner::default())?;
        out.say(&json!({ "done": "restored" }), &format!("{:?}: goes on from {point:?}", machine.name));
        return Ok(());
    }
    let next = match machine.resume {
        Some(_) => "its next start goes on from there",
        None => "it is off, as it was then",
    };
    out.say(&json!({ "done": "restored" }), &format!("{:?}: back at {point:?}; {next}", machine.name));
    Ok(())
}

/// Deletes a snapshot or a checkpoint of the timeline.
pub fn delete(out: Out, which: &Which, point: &str) -> Result<(), CliError> {
    let mut progress = told(out, &which.name, "merging what its disks hold");
    let machine = verbs::delete_snapshot(&library()?, &which.name, point, &mut progress)?;
    out.say(&json!({ "done": "deleted" }), &format!("{:?}: deleted {point:?}", machine.name));
    Ok(())
}

/// `orangery clone`.
pub fn clone(out: Out, which: &Which, new: Option<String>, of: Option<String>, linked: bool) -> Result<(), CliError> {
    let library = library()?;
    let name = new.map_or_else(|| library.free_fork_name(&library.load(&which.name)?.name), Ok)?;
    let mut progress = told(out, &which.name, "copying its disks");
    let wish = CloneWish { of, name, full: !linked };
    let made = verbs::clone(&library, &which.name, &wish, &mut progress)?;
    drop(progress);
    out.machine(&made, &format!("Made {:?} in {}", made.name, made.folder().display()));
    Ok(())
}

fn shown(diff: &Diff) -> serde_json::Value {
    let settings = diff.settings.iter().map(|s| json!({ "field": s.field, "before": s.before, "after": s.after }));
    let disks = diff.disks.iter().map(|(disk, size)| json!({ "disk": disk, "size": size }));
    json!({ "settings": settings.collect::<Vec<_>>(), "disks": disks.collect::<Vec<_>>(), "memory": diff.memory })
}

fn told_diff(diff: &Diff) -> String {
    let none = || String::from("-");
    let mut rows: Vec<Vec<String>> = Vec::new();
    for setting in &diff.settings {
        let [before, after] = [&setting.before, &setting.after].map(|value| value.clone().unwrap_or_else(none));
        rows.push(vec![setting.field.clone(), format!("{before} → {after}")]);
    }
    rows.extend(diff.disks.iter().map(|(disk, bytes)| vec![format!("Disk {disk}"), size::human(*bytes)]));
    rows.extend(diff.memory.map(|bytes| vec!["Memory".into(), size::human(bytes)]));
    if rows.is_empty() { "Nothing is different".into() } else { table(&rows) }
}

/// Snapshots as a tree, the present where it stands.
fn tree(snapshots: &[ShownSnapshot]) -> String {
    if snapshots.is_empty() {
        return "It has no snapshots. Take one with: orangery snapshot take MACHINE NAME".into();
    }
    let known = |id: &Option<String>| id.as_ref().is_some_and(|id| snapshots.iter().any(|s| s.id == *id));
    let mut rows = vec![["SNAPSHOT", "TAKEN", "STATE", "SIZE", "NOTE"].map(String::from).to_vec()];
    // Roots first, each followed by what came after it. Ids may be anything: each is shown once.
    let mut open: Vec<(usize, &ShownSnapshot)> =
        snapshots.iter().rev().filter(|s| !known(&s.parent)).map(|s| (0, s)).collect();
    let mut seen = BTreeSet::new();
    while let Some((depth, one)) = open.pop() {
        if !seen.insert(&one.id) {
            continue;
        }
        let here = if one.present { " (you are here)" } else { "" };
        rows.push(vec![
            format!("{}{}{here}", "  ".repeat(depth), one.name),
            one.created.to_string(),
            if one.running { "running" } else { "off" }.into(),
            size::human(one.size),
            one.note.clone(),
        ]);
        open.extend(snapshots.iter().rev().filter(|s| s.parent.as_ref() == Some(&one.id)).map(|s| (depth + 1, s)));
    }
    table(&rows)
}
