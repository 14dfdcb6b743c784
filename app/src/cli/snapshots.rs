//! `orangery snapshot`.

use std::collections::BTreeSet;

use serde_json::json;

use super::CliError;
use super::args::{SnapshotAct, Which};
use super::output::{ShownSnapshot, table};
use super::verbs::{Out, connect, free_name, library, told, work};
use crate::control::protocol::Request;
use crate::library::{CloneWish, Machine, size};

/// Does what the command line says of snapshots.
pub fn perform(out: Out, act: &SnapshotAct) -> Result<(), CliError> {
    match act {
        SnapshotAct::Take { which, snapshot, note } => {
            let machine = take_snapshot(out, which, snapshot, note)?;
            out.say(&json!({ "done": "taken" }), &format!("{:?}: took the snapshot {snapshot:?}", machine.name));
        }
        SnapshotAct::List { which } => {
            let snapshots: Vec<ShownSnapshot> =
                library()?.load(&which.name)?.snapshots()?.into_iter().map(Into::into).collect();
            out.say(&snapshots, &tree(&snapshots));
        }
        SnapshotAct::Restore { which, snapshot, keep } => {
            if let Some(name) = keep {
                take_snapshot(out, which, name, "")?;
            }
            restore(out, which, snapshot)?;
        }
        SnapshotAct::Delete { which, snapshot } => {
            delete(out, which, snapshot)?;
        }
    }
    Ok(())
}

/// Goes back to a snapshot or a checkpoint of the timeline.
pub fn restore(out: Out, which: &Which, point: &str) -> Result<(), CliError> {
    let mut machine = library()?.load(&which.name)?;
    let _lock = machine.lock()?;
    machine.restore_snapshot(point)?;
    let next = match machine.resume {
        Some(_) => "its next start goes on from there",
        None => "it is off, as it was then",
    };
    out.say(&json!({ "done": "restored" }), &format!("{:?}: back at {point:?}; {next}", machine.name));
    Ok(())
}

/// Deletes a snapshot or a checkpoint of the timeline.
pub fn delete(out: Out, which: &Which, point: &str) -> Result<(), CliError> {
    let mut machine = library()?.load(&which.name)?;
    let doing = "merging what its disks hold";
    if machine.holder()?.is_some() {
        let (machine, client) = connect(which)?;
        work(out, &machine, client, &Request::DeleteSnapshot { name: point.into() }, doing)?;
    } else {
        let _lock = machine.lock()?;
        let mut progress = told(out, &machine, doing);
        machine.delete_snapshot_at_rest(point, &mut progress)?;
    }
    out.say(&json!({ "done": "deleted" }), &format!("{:?}: deleted {point:?}", machine.name));
    Ok(())
}

/// `orangery clone`.
pub fn clone(out: Out, which: &Which, new: Option<String>, of: Option<String>, linked: bool) -> Result<(), CliError> {
    let library = library()?;
    let mut machine = library.load(&which.name)?;
    let name = new.unwrap_or_else(|| free_name(&library, &machine.name));
    let mut progress = told(out, &machine, "copying its disks");
    let wish = CloneWish { of, name, full: !linked };
    let made = library.clone_machine(&mut machine, &wish, &mut progress)?;
    drop(progress);
    out.machine(&made, &format!("Made {:?} in {}", made.name, made.folder().display()));
    Ok(())
}

/// Takes a snapshot of a machine that runs or does not.
fn take_snapshot(out: Out, which: &Which, name: &str, note: &str) -> Result<Machine, CliError> {
    let mut machine = library()?.load(&which.name)?;
    if machine.holder()?.is_some() {
        let (_, client) = connect(which)?;
        let request = Request::TakeSnapshot { name: name.into(), note: note.into() };
        work(out, &machine, client, &request, "saving its memory")?;
        return Ok(machine);
    }
    let _lock = machine.lock()?;
    machine.take_snapshot(name, note)?;
    Ok(machine)
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
