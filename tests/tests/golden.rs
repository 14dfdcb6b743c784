//! Machines that were saved by earlier versions, in `tests/golden`: every later one reads, restores and runs them, for ever
//! (docs/checkpoints.md, "Golden checkpoints"). None is ever changed or removed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orangery_tests::crash::{Stage, State, look, write};
use orangery_tests::kvm::Kvm;
use orangery_tests::{project, report};

/// With this variable set, machines are saved under that name, by this version, instead.
const MAKE: &str = "ORANGERY_GOLDEN";
/// What is in a machine, byte by byte, beside it.
const FACTS: &str = "facts.json";
const PATIENCE: Duration = Duration::from_secs(120);
/// What a computer says whose processors can't do what the guest was told.
const REFUSAL: &str = "go on with it on a computer like the one it was saved on";

fn folder() -> PathBuf {
    project().join("tests/golden")
}

/// The packed machines whose names begin so.
fn golden(kind: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(kind))
        .collect();
    all.sort();
    assert!(!all.is_empty(), "there is nothing in {}", folder().display());
    all
}

fn tar(args: &[&str]) {
    let output = Command::new("tar").args(args).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn pack(stage: &Stage, name: &str) {
    let facts = packed(look(&stage.folder).unwrap());
    // Beside the machines it would be taken for an image.
    std::fs::write(stage.folder.join("a").join(FACTS), serde_json::to_vec_pretty(&facts).unwrap()).unwrap();
    let to = folder().join(format!("{name}.tar.zst"));
    let (from, to) = (stage.folder.to_str().unwrap(), to.to_str().unwrap());
    let program = "--use-compress-program=zstd -19";
    let plain = ["--owner=0", "--group=0", "--sort=name", "--exclude=vm.lock", "--exclude=logs"];
    tar(&[&["--sparse", program, "-cf", to, "-C", from][..], &plain, &["a"]].concat());
}

/// A machine as it was packed; it is what it was.
fn unpack(path: &Path) -> Stage {
    let stage = Stage::new().unwrap();
    tar(&["--zstd", "-xf", path.to_str().unwrap(), "-C", stage.folder.to_str().unwrap()]);
    let facts = std::fs::read(stage.folder.join("a").join(FACTS)).unwrap();
    let facts: BTreeMap<String, String> = serde_json::from_slice(&facts).unwrap();
    assert!(facts.len() > 5, "{facts:?}");
    assert_eq!(packed(look(&stage.folder).unwrap()), facts, "{}", path.display());
    stage
}

/// What is kept of a state: with the files that RAM is in, which nobody has changed.
fn packed(state: State) -> BTreeMap<String, String> {
    let mut facts = state.facts;
    facts.extend(state.layers);
    facts
}

#[test]
fn a_machine_at_rest_of_every_version_goes_back_to_its_snapshots() {
    if let Ok(version) = std::env::var(MAKE) {
        return make_at_rest(&version);
    }
    for path in golden("rest-") {
        let stage = unpack(&path);
        let before = look(&stage.folder).unwrap().facts;
        let disk = |facts: &BTreeMap<String, String>, of: &str| facts[&format!("a: {of}disk 0")].clone();
        for name in ["one", "two"] {
            stage.ok(&["snapshot", "restore", "a", name]).unwrap();
            let now = look(&stage.folder).unwrap().facts;
            assert_eq!(disk(&now, ""), disk(&before, &format!("snapshot {name:?}: ")), "{name}");
        }
        let two = disk(&before, "snapshot \"two\": ");
        for name in ["one", "two"] {
            stage.ok(&["snapshot", "delete", "a", name]).unwrap();
            assert_eq!(disk(&look(&stage.folder).unwrap().facts, ""), two);
        }
    }
}

fn make_at_rest(version: &str) {
    let stage = Stage::new().unwrap();
    let args = ["create", "a", "--memory", "64", "--cpus", "1", "--firmware", "bios", "--new-disk", "1M"];
    stage.ok(&args).unwrap();
    let mut image = stage.folder.join("a/disks/disk-0.img");
    for (seed, name) in [(1u8, "one"), (2, "two"), (3, "")] {
        let bytes: Vec<u8> = (0..64 << 10).map(|at: u32| (at >> 9) as u8 ^ (at as u8).wrapping_mul(seed)).collect();
        write(&image, u64::from(seed) * (20 << 10), &bytes).unwrap();
        if !name.is_empty() {
            stage.ok(&["snapshot", "take", "a", name]).unwrap();
            let shown: serde_json::Value = serde_json::from_str(&stage.ok(&["show", "a", "--json"]).unwrap()).unwrap();
            image = shown["config"]["disks"][0]["path"].as_str().unwrap().into();
        }
    }
    pack(&stage, &format!("rest-{version}"));
}

/// Waits until the guest has found all right `times` more since it was started.
fn wait_for_rounds(stage: &Stage, times: usize) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = std::fs::read_to_string(stage.folder.join("a/logs/serial.log")).unwrap_or_default();
        assert!(!log.contains("FAIL"), "{log}");
        let rounds = log.lines().filter_map(|line| line.strip_prefix("watch: round ")?.strip_suffix(" holds"));
        let rounds: Vec<u64> = rounds.map(|round| round.parse().unwrap()).collect();
        if rounds.len() >= times {
            return rounds[0];
        }
        assert!(Instant::now() < until, "it does not go on: {log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_running_machine_of_every_version_goes_on_or_is_refused_in_words() {
    let test = "a_running_machine_of_every_version_goes_on_or_is_refused_in_words";
    if Kvm::detect() == Kvm::None {
        return report::skip(2, test, "there is no usable /dev/kvm");
    }
    if let Ok(version) = std::env::var(MAKE) {
        return make_running(&version);
    }
    for path in golden("running-") {
        let stage = unpack(&path);
        let start = stage.run(&["start", "a", "--headless"]).unwrap();
        if !start.status.success() {
            let said = String::from_utf8_lossy(&start.stderr);
            assert!(said.contains(REFUSAL), "{}: {said}", path.display());
            // It waits for the computer that can.
            assert!(stage.ok(&["show", "a", "--json"]).unwrap().contains("\"suspended\""));
            eprintln!("{}: refused here: {said}", path.display());
            continue;
        }
        // It went on, with all that it had: one that starts anew begins with a low number.
        let suspended = wait_for_rounds(&stage, 2);
        stage.ok(&["stop", "a", "--force"]).unwrap();
        let mut last = 0;
        for name in ["one", "two"] {
            stage.ok(&["snapshot", "restore", "a", name]).unwrap();
            stage.ok(&["start", "a", "--headless"]).unwrap();
            let round = wait_for_rounds(&stage, 2);
            assert!(round > last && round < suspended, "{name}: {round} of {suspended}");
            last = round;
            // With the formats of today beside that of then.
            stage.ok(&["snapshot", "take", "a", &format!("after {name}")]).unwrap();
            stage.ok(&["stop", "a", "--force"]).unwrap();
        }
        for name in ["one", "two", "after one"] {
            stage.ok(&["snapshot", "delete", "a", name]).unwrap();
        }
        stage.ok(&["snapshot", "restore", "a", "after two"]).unwrap();
        stage.ok(&["start", "a", "--headless"]).unwrap();
        wait_for_rounds(&stage, 2);
        stage.ok(&["stop", "a", "--force"]).unwrap();
    }
}

fn make_running(version: &str) {
    let stage = Stage::new().unwrap();
    let kernel = stage.folder.parent().unwrap().join("probe.elf");
    std::fs::write(&kernel, orangery_assets::PROBE_ELF).unwrap();
    let kernel = kernel.to_str().unwrap();
    let words = "then=watch watchkib=64 watchblocks=8";
    let machine = ["create", "a", "--memory", "64", "--cpus", "1", "--new-disk", "1M"];
    stage.ok(&[&machine[..], &["--kernel", kernel, "--cmdline", words]].concat()).unwrap();
    // What starts it goes with it.
    let (folder, inside) = (stage.folder.join("a"), "probe.elf");
    std::fs::rename(kernel, folder.join(inside)).unwrap();
    let file = folder.join("machine.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(kernel, inside)).unwrap();
    stage.ok(&["start", "a", "--headless"]).unwrap();
    for (name, rounds) in [("one", 2), ("two", 4)] {
        wait_for_rounds(&stage, rounds);
        stage.ok(&["snapshot", "take", "a", name]).unwrap();
    }
    wait_for_rounds(&stage, 6);
    stage.ok(&["suspend", "a"]).unwrap();
    pack(&stage, &format!("running-{version}"));
}
