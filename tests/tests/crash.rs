//! Everything that is done to a machine at rest, and to disk images, interrupted at every system call that stores something: by a
//! kill, and by a failure of the call. The machine is what it was, or what it was to become.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;

use orangery_tests::crash::{Operation, Stage, prove, write};
use orangery_tests::kvm::Kvm;
use orangery_tests::report;

/// Bytes that differ everywhere.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// The images that a machine's disks are now.
fn images(stage: &Stage, name: &str) -> Vec<PathBuf> {
    let shown: serde_json::Value = serde_json::from_str(&stage.ok(&["show", name, "--json"]).unwrap()).unwrap();
    let disks = shown["config"]["disks"].as_array().unwrap().clone();
    disks.into_iter().map(|disk| PathBuf::from(disk["path"].as_str().unwrap())).collect()
}

/// The guest writes something here and there.
fn fill(stage: &Stage, seed: u64) {
    for (number, image) in images(stage, "a").iter().enumerate() {
        for part in 0..6 {
            let bytes = pattern(seed * 100 + number as u64 * 10 + part, 24 << 10);
            write(image, ((seed * 7 + part * 3) % 40) * (24 << 10), &bytes).unwrap();
        }
    }
}

/// A machine with two disks that hold something.
fn machine() -> Stage {
    let stage = Stage::new().unwrap();
    let args = ["create", "a", "--memory", "64", "--cpus", "1", "--firmware", "bios"];
    stage.ok(&[&args[..], &["--new-disk", "1M", "--new-disk", "1M"]].concat()).unwrap();
    fill(&stage, 1);
    stage
}

/// The same with three snapshots, and changes since the last.
fn with_snapshots() -> Stage {
    let stage = machine();
    for (number, name) in ["one", "two", "three"].into_iter().enumerate() {
        stage.ok(&["snapshot", "take", "a", name]).unwrap();
        fill(&stage, 2 + number as u64);
    }
    stage
}

/// A snapshot comes and goes: what was left to be merged or removed is.
const SETTLE: &[&[&str]] = &[&["snapshot", "take", "a", "last"], &["snapshot", "delete", "a", "last"]];

fn prove_of_machine(stage: Stage, verb: &[&str]) {
    prove(stage, &Operation { verb, machine: Some("a"), settle: SETTLE }).unwrap();
}

#[test]
fn a_machine_is_made_whole_or_not_at_all() {
    let verb = ["create", "b", "--memory", "64", "--cpus", "1", "--firmware", "bios", "--new-disk", "1M"];
    prove(machine(), &Operation { verb: &verb, machine: Some("b"), settle: &[] }).unwrap();
}

#[test]
fn a_snapshot_is_taken_whole_or_not_at_all() {
    prove_of_machine(machine(), &["snapshot", "take", "a", "one"]);
    prove_of_machine(with_snapshots(), &["snapshot", "take", "a", "four"]);
}

#[test]
fn a_machine_goes_back_to_a_snapshot_wholly_or_not_at_all() {
    prove_of_machine(with_snapshots(), &["snapshot", "restore", "a", "one"]);
}

/// UEFI variables and a TPM's state, each as it was at one moment.
fn write_loose(stage: &Stage, files: &[(&str, u64)]) {
    for &(name, seed) in files {
        let path = stage.folder.join("a").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, pattern(seed, 3000)).unwrap();
    }
}

#[test]
fn variables_and_a_tpm_go_back_with_the_disks_or_stay_with_them() {
    let stage = Stage::new().unwrap();
    let args = ["create", "a", "--memory", "128", "--cpus", "1", "--firmware", "uefi", "--tpm", "--new-disk", "1M"];
    stage.ok(&args).unwrap();
    fill(&stage, 1);
    write_loose(&stage, &[("nvram.fd", 1), ("tpm/tpm2-00.permall", 2)]);
    stage.ok(&["snapshot", "take", "a", "one"]).unwrap();
    fill(&stage, 2);
    write_loose(&stage, &[("nvram.fd", 3), ("tpm/tpm2-00.permall", 4), ("tpm/tpm2-00.volatilestate", 5)]);
    // What it has is no firmware's: it is not started.
    prove(stage, &Operation { verb: &["snapshot", "restore", "a", "one"], machine: None, settle: SETTLE }).unwrap();
}

/// A machine that was suspended after a snapshot with its memory and one without. `None`: it can't run here.
fn suspended(test: &str) -> Option<Stage> {
    if Kvm::detect() == Kvm::None {
        report::skip(2, test, "there is no usable /dev/kvm");
        return None;
    }
    let stage = machine();
    stage.ok(&["snapshot", "take", "a", "off"]).unwrap();
    fill(&stage, 2);
    stage.ok(&["start", "a", "--headless"]).unwrap();
    stage.ok(&["snapshot", "take", "a", "on"]).unwrap();
    stage.ok(&["suspend", "a"]).unwrap();
    Some(stage)
}

/// It starts, and what is to be done then is.
const STARTED: &[&[&str]] = &[&["start", "a", "--headless"], &["stop", "a", "--force"]];

#[test]
fn what_a_machine_was_suspended_in_is_given_up_wholly_or_not_at_all() {
    let Some(stage) = suspended("what_a_machine_was_suspended_in_is_given_up_wholly_or_not_at_all") else { return };
    prove(stage, &Operation { verb: &["stop", "a", "--force"], machine: None, settle: STARTED }).unwrap();
}

/// A start would go on, and change what is there.
const AGAIN: &[&[&str]] = &[&["snapshot", "restore", "a", "on"]];

#[test]
fn a_suspended_machine_that_goes_back_never_goes_on_with_other_disks() {
    let test = "a_suspended_machine_that_goes_back_never_goes_on_with_other_disks";
    let Some(stage) = suspended(test) else { return };
    prove(stage, &Operation { verb: &["snapshot", "restore", "a", "off"], machine: None, settle: STARTED }).unwrap();
    let Some(stage) = suspended(test) else { return };
    prove(stage, &Operation { verb: &["snapshot", "restore", "a", "on"], machine: None, settle: AGAIN }).unwrap();
}

#[test]
fn the_first_snapshot_is_deleted_and_nothing_else() {
    prove_of_machine(with_snapshots(), &["snapshot", "delete", "a", "one"]);
}

#[test]
fn a_snapshot_in_the_middle_is_deleted_and_nothing_else() {
    prove_of_machine(with_snapshots(), &["snapshot", "delete", "a", "two"]);
}

#[test]
fn the_last_snapshot_is_deleted_and_nothing_else() {
    prove_of_machine(with_snapshots(), &["snapshot", "delete", "a", "three"]);
}

#[test]
fn a_machine_goes_to_the_trash_and_comes_back() {
    prove(with_snapshots(), &Operation { verb: &["delete", "a"], machine: Some("a"), settle: &[] }).unwrap();
    let stage = with_snapshots();
    stage.ok(&["delete", "a"]).unwrap();
    prove_of_machine(stage, &["restore", "a"]);
}

#[test]
fn what_is_emptied_from_the_trash_is_not_brought_back_in_parts() {
    let stage = with_snapshots();
    stage.ok(&["delete", "a"]).unwrap();
    prove(stage, &Operation { verb: &["trash", "--empty"], machine: None, settle: &[&["trash", "--empty"]] }).unwrap();
}

#[test]
fn a_machine_has_its_old_name_or_its_new_one() {
    prove(machine(), &Operation { verb: &["rename", "a", "b"], machine: None, settle: &[] }).unwrap();
}

/// `settle`: whoever uses the image next takes back what was lost of its space.
fn prove_of_image(prepare: impl Fn(&Path), verb: &[&str], settle: &[&[&str]]) {
    let stage = Stage::new().unwrap();
    prepare(&stage.folder);
    prove(stage, &Operation { verb, machine: None, settle }).unwrap();
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// An image of the first 256 KiB and of a part further on.
fn image(folder: &Path, name: &str, options: &str) {
    let path = folder.join(name);
    let format = if name.ends_with(".raw") { "raw" } else { "qcow2" };
    let mut args = vec!["create", "-q", "-f", format];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    qemu_img(&[&args[..], &[path.to_str().unwrap(), "2M"]].concat());
    write(&path, 0, &pattern(1, 256 << 10)).unwrap();
    write(&path, 1 << 20, &pattern(2, 100 << 10)).unwrap();
}

#[test]
fn an_image_is_made_whole_or_not_at_all() {
    let none = |_: &Path| ();
    prove_of_image(none, &["disk", "create", "new.qcow2", "4M"], &[]);
    prove_of_image(none, &["disk", "create", "new.raw", "4M"], &[]);
    prove_of_image(
        |folder| image(folder, "old.qcow2", ""),
        &["disk", "create", "new.qcow2", "--backing", "old.qcow2"],
        &[],
    );
}

#[test]
fn an_image_is_converted_whole_or_not_at_all() {
    prove_of_image(|folder| image(folder, "old.qcow2", ""), &["disk", "convert", "old.qcow2", "new.raw"], &[]);
    prove_of_image(|folder| image(folder, "old.raw", ""), &["disk", "convert", "old.raw", "new.qcow2"], &[]);
}

#[test]
fn an_image_has_its_old_size_or_its_new_one() {
    // The last one has small clusters: its tables have to move.
    for (name, options, size) in
        [("old.raw", "", "8M"), ("old.qcow2", "", "8M"), ("old.qcow2", "cluster_size=512", "64M")]
    {
        let verb = ["disk", "grow", name, size];
        prove_of_image(|folder| image(folder, name, options), &verb, &[&verb]);
    }
}

#[test]
fn an_image_that_is_compacted_or_mended_holds_what_it_held() {
    let zeroed = |name: &'static str| {
        move |folder: &Path| {
            image(folder, name, "");
            write(&folder.join(name), 64 << 10, &[0; 128 << 10]).unwrap();
        }
    };
    prove_of_image(zeroed("old.raw"), &["disk", "compact", "old.raw"], &[]);
    prove_of_image(zeroed("old.qcow2"), &["disk", "compact", "old.qcow2"], &[]);
}

#[test]
fn a_disk_is_in_its_old_format_or_its_new_one() {
    prove_of_machine(machine(), &["disk", "switch", "a", "qcow2", "--disk", "1"]);
    let stage = machine();
    stage.ok(&["disk", "switch", "a", "qcow2"]).unwrap();
    prove_of_machine(stage, &["disk", "switch", "a", "raw"]);
}

#[test]
fn a_disk_of_a_machine_with_a_timeline_grows_wholly_or_not_at_all() {
    let stage = machine();
    stage.ok(&["timeline", "on", "a"]).unwrap();
    prove_of_machine(stage, &["disk", "grow", "a/disks/disk-0.img", "2M"]);
}
