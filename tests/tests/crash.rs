//! Everything that is done to a machine at rest, and to disk images, interrupted at every system call that stores something: by a
//! kill, and by a failure of the call. The machine is what it was, or what it was to become.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;

use orangery_tests::crash::{Act, Operation, Stage, prove, write};
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
    prove(stage, &Operation { verb, machine: Some("a"), settle: SETTLE, ..Operation::default() }).unwrap();
}

#[test]
fn a_machine_is_made_whole_or_not_at_all() {
    let verb = ["create", "b", "--memory", "64", "--cpus", "1", "--firmware", "bios", "--new-disk", "1M"];
    prove(machine(), &Operation { verb: &verb, machine: Some("b"), ..Operation::default() }).unwrap();
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
    prove(stage, &Operation { verb: &["snapshot", "restore", "a", "one"], settle: SETTLE, ..Operation::default() })
        .unwrap();
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
    prove(stage, &Operation { verb: &["stop", "a", "--force"], settle: STARTED, ..Operation::default() }).unwrap();
}

/// A start would go on, and change what is there.
const AGAIN: &[&[&str]] = &[&["snapshot", "restore", "a", "on"]];

#[test]
fn a_suspended_machine_that_goes_back_never_goes_on_with_other_disks() {
    let test = "a_suspended_machine_that_goes_back_never_goes_on_with_other_disks";
    let Some(stage) = suspended(test) else { return };
    prove(stage, &Operation { verb: &["snapshot", "restore", "a", "off"], settle: STARTED, ..Operation::default() })
        .unwrap();
    let Some(stage) = suspended(test) else { return };
    prove(stage, &Operation { verb: &["snapshot", "restore", "a", "on"], settle: AGAIN, ..Operation::default() })
        .unwrap();
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
    prove(with_snapshots(), &Operation { verb: &["delete", "a"], machine: Some("a"), ..Operation::default() }).unwrap();
    let stage = with_snapshots();
    stage.ok(&["delete", "a"]).unwrap();
    prove_of_machine(stage, &["restore", "a"]);
}

#[test]
fn what_is_emptied_from_the_trash_is_not_brought_back_in_parts() {
    let stage = with_snapshots();
    stage.ok(&["delete", "a"]).unwrap();
    prove(stage, &Operation { verb: &["trash", "--empty"], settle: &[&["trash", "--empty"]], ..Operation::default() })
        .unwrap();
}

#[test]
fn a_machine_has_its_old_name_or_its_new_one() {
    prove(machine(), &Operation { verb: &["rename", "a", "b"], ..Operation::default() }).unwrap();
}

/// What was left of clones to be merged or removed is, in both machines.
const SETTLE_BOTH: &[&[&str]] = &[
    &["snapshot", "take", "a", "last"],
    &["snapshot", "delete", "a", "last"],
    &["snapshot", "take", "b", "last"],
    &["snapshot", "delete", "b", "last"],
];

#[test]
fn a_clone_is_made_whole_or_not_at_all_and_the_machine_stays_what_it_is() {
    for (verb, spare) in [
        (&["clone", "a", "b"][..], 0),
        (&["clone", "a", "b", "--of", "one"], 0),
        (&["clone", "a", "b", "--of", "one", "--linked"], 0),
        // Each attempt gives the machine another image for each disk, on one that a clone may have.
        (&["clone", "a", "b", "--linked"], 4),
    ] {
        let operation = Operation { verb, machine: Some("a"), settle: SETTLE_BOTH, spare, ..Operation::default() };
        prove(with_snapshots(), &operation).unwrap();
    }
}

#[test]
fn a_clone_of_a_machine_with_its_memory_is_made_whole_or_not_at_all() {
    let test = "a_clone_of_a_machine_with_its_memory_is_made_whole_or_not_at_all";
    for verb in [
        &["clone", "a", "b"][..],
        &["clone", "a", "b", "--linked"],
        &["clone", "a", "b", "--of", "on"],
        &["clone", "a", "b", "--of", "on", "--linked"],
    ] {
        let Some(stage) = suspended(test) else { return };
        // What a start would change stays.
        let settle: &[&[&str]] = &[&["snapshot", "list", "b"]];
        prove(stage, &Operation { verb, settle, spare: 4, ..Operation::default() }).unwrap();
    }
}

/// The ids of a machine's checkpoints of its timeline, the oldest first.
fn points(stage: &Stage) -> Vec<String> {
    let listed = stage.ok(&["timeline", "list", "a", "--json"]).unwrap();
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
    listed.iter().map(|point| point["id"].as_str().unwrap().to_string()).collect()
}

/// The machine with snapshots, and a timeline with two checkpoints of what it was before it went back.
fn with_timeline() -> Stage {
    let stage = with_snapshots();
    stage.ok(&["timeline", "on", "a"]).unwrap();
    for (seed, name) in [(11, "two"), (12, "one")] {
        fill(&stage, seed);
        stage.ok(&["snapshot", "restore", "a", name]).unwrap();
    }
    fill(&stage, 13);
    assert_eq!(points(&stage).len(), 2);
    stage
}

#[test]
fn a_timeline_is_begun_and_ended_and_nothing_else() {
    // A start takes the first checkpoint by itself.
    let verb = ["timeline", "on", "a"];
    prove(with_snapshots(), &Operation { verb: &verb, settle: SETTLE, ..Operation::default() }).unwrap();
    prove_of_machine(with_timeline(), &["timeline", "off", "a"]);
}

#[test]
fn a_machine_with_a_timeline_keeps_the_present_and_goes_back_wholly_or_not_at_all() {
    let stage = with_timeline();
    let id = points(&stage)[0].clone();
    for verb in [["timeline", "restore", "a", &id], ["snapshot", "restore", "a", "one"]] {
        let operation =
            Operation { verb: &verb, machine: Some("a"), settle: SETTLE, adds: true, ..Operation::default() };
        prove(stage.copy().unwrap(), &operation).unwrap();
    }
}

#[test]
fn what_a_machine_with_a_timeline_was_suspended_in_is_kept_on_it_or_stays() {
    let test = "what_a_machine_with_a_timeline_was_suspended_in_is_kept_on_it_or_stays";
    let Some(stage) = suspended(test) else { return };
    stage.ok(&["timeline", "on", "a"]).unwrap();
    let verb = ["snapshot", "restore", "a", "off"];
    // A start would take a checkpoint by itself, and going back once more as well.
    let settle: &[&[&str]] = &[&["snapshot", "edit", "a", "off", "--note", ""]];
    prove(stage, &Operation { verb: &verb, settle, ..Operation::default() }).unwrap();
}

#[test]
fn a_checkpoint_of_a_timeline_is_deleted_and_nothing_else() {
    for index in 0..2 {
        let stage = with_timeline();
        let id = points(&stage)[index].clone();
        prove_of_machine(stage, &["timeline", "delete", "a", &id]);
    }
}

#[test]
fn a_checkpoint_of_a_timeline_is_opened_as_a_copy_wholly_or_not_at_all() {
    let stage = with_timeline();
    let id = points(&stage)[1].clone();
    let verb = ["timeline", "copy", "a", &id, "b"];
    prove(stage, &Operation { verb: &verb, machine: Some("a"), settle: SETTLE_BOTH, ..Operation::default() }).unwrap();
}

#[test]
fn a_snapshot_has_its_old_name_and_note_or_its_new_ones() {
    prove_of_machine(with_snapshots(), &["snapshot", "edit", "a", "two", "--note", "of a Thursday"]);
    // Of another name the old one is not there to be edited again.
    let verb = ["snapshot", "edit", "a", "two", "--name", "zwei", "--note", "of a Thursday"];
    prove_of_machine(with_snapshots(), &verb);
    // It becomes a snapshot.
    let stage = with_timeline();
    let id = points(&stage)[0].clone();
    prove_of_machine(stage, &["snapshot", "edit", "a", &id, "--name", "kept"]);
}

/// A machine of our own guest, which does this.
fn with_guest(words: &str) -> Stage {
    let stage = Stage::new().unwrap();
    let kernel = stage.folder.parent().unwrap().join("probe.elf");
    std::fs::write(&kernel, orangery_assets::PROBE_ELF).unwrap();
    let args = ["create", "a", "--memory", "64", "--cpus", "1", "--new-disk", "1M", "--kernel"];
    stage.ok(&[&args[..], &[kernel.to_str().unwrap(), "--cmdline", words]].concat()).unwrap();
    stage
}

#[test]
fn a_run_without_saving_leaves_the_machine_as_it_was_however_it_ends() {
    let test = "a_run_without_saving_leaves_the_machine_as_it_was_however_it_ends";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    let verb = ["run", "a", "--headless", "--without-saving"];
    let prepared = |words: &str| {
        let stage = with_guest(words);
        write(&images(&stage, "a")[0], 0, &pattern(1, 256 << 10)).unwrap();
        stage.ok(&["snapshot", "take", "a", "one"]).unwrap();
        write(&images(&stage, "a")[0], 4096, &pattern(2, 64 << 10)).unwrap();
        stage
    };
    // The guest writes to all of its disk. Where there is no room for that it would be paused, and wait.
    let without = &[Act::Fail(libc::ENOSPC), Act::Full];
    let operation = Operation { verb: &verb, settle: SETTLE, without, ..Operation::default() };
    prove(prepared("test=blk-pattern blkfill=7"), &operation).unwrap();
    let operation = Operation { verb: &verb, settle: SETTLE, ..Operation::default() };
    prove(prepared("test=cpu"), &operation).unwrap();
}

#[test]
fn memory_that_few_pages_are_needed_of_is_copied_wholly_or_stays() {
    let test = "memory_that_few_pages_are_needed_of_is_copied_wholly_or_stays";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    let stage = with_guest("then=watch watchmib=1 watchblocks=8");
    stage.ok(&["start", "a", "--headless"]).unwrap();
    for (name, rounds) in [("one", 1), ("two", 12)] {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(120);
        let log = stage.folder.join("a/logs/serial.log");
        while std::fs::read_to_string(&log).unwrap_or_default().matches(" holds").count() < rounds {
            assert!(std::time::Instant::now() < until, "the guest does not go on");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        stage.ok(&["snapshot", "take", "a", name]).unwrap();
    }
    stage.ok(&["stop", "a", "--force"]).unwrap();
    stage.ok(&["snapshot", "restore", "a", "two"]).unwrap();
    let settle: &[&[&str]] = &[&["snapshot", "restore", "a", "two"]];
    // Images that are not merged yet are when the next snapshot is deleted.
    let verb = ["snapshot", "delete", "a", "one"];
    prove(stage, &Operation { verb: &verb, settle, spare: 1, ..Operation::default() }).unwrap();
}

#[test]
fn uefi_variables_are_forgotten_or_kept() {
    let stage = Stage::new().unwrap();
    stage.ok(&["create", "a", "--memory", "128", "--cpus", "1", "--firmware", "uefi", "--new-disk", "1M"]).unwrap();
    write_loose(&stage, &[("nvram.fd", 1)]);
    let verb = ["nvram-reset", "a"];
    prove(stage, &Operation { verb: &verb, settle: SETTLE, ..Operation::default() }).unwrap();
}

/// `settle`: whoever uses the image next takes back what was lost of its space.
fn prove_of_image(prepare: impl Fn(&Path), verb: &[&str], settle: &[&[&str]]) {
    let stage = Stage::new().unwrap();
    prepare(&stage.folder);
    prove(stage, &Operation { verb, settle, ..Operation::default() }).unwrap();
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
    // What is only read lies elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    image(elsewhere.path(), "old.qcow2", "");
    let [old, disk] = ["old.qcow2", "disk.vmdk"].map(|name| elsewhere.path().join(name).to_str().unwrap().to_string());
    qemu_img(&["convert", "-q", "-O", "vmdk", "-o", "subformat=streamOptimized", &old, &disk]);
    prove_of_image(|_| (), &["disk", "convert", &disk, "new.qcow2"], &[]);
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
fn a_machine_gets_a_disk_or_not() {
    prove_of_machine(machine(), &["disk", "add", "a", "2M"]);
}

/// Counts a cluster of an image that nothing uses: space is lost.
fn lose(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let cluster = 1 << u32::from_be_bytes(bytes[20..24].try_into().unwrap());
    // The table of refcounts, its first block, and in that 16 bits a cluster (the qcow2 format, "Host cluster management").
    let block = word(&bytes, word(&bytes, 48));
    let number = bytes.len().div_ceil(cluster);
    bytes[block + number * 2 + 1] = 1;
    bytes.resize((number + 1) * cluster, 0xee);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_image_that_is_repaired_holds_what_it_held() {
    let prepare = |folder: &Path| {
        image(folder, "old.qcow2", "");
        lose(&folder.join("old.qcow2"));
        assert_eq!(orangery_tests::crash::look(folder).unwrap().leaks.len(), 1);
    };
    let verb: &[&str] = &["disk", "check", "--repair", "old.qcow2"];
    prove_of_image(prepare, verb, &[verb]);
}
