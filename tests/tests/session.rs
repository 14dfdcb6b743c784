//! Machines in processes of their own, on this computer's /dev/kvm: SeaBIOS without a disk is guest enough.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use orangery_tests::kvm::Kvm;
use orangery_tests::{orangery, qemu, report};
use serde_json::Value;

/// How long anything may take before the test gives up on it.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// `None` without a usable /dev/kvm: the test is counted as skipped.
    fn new(test: &str) -> Option<Bench> {
        if Kvm::detect() == Kvm::None {
            report::skip(2, test, "there is no usable /dev/kvm");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        Some(Bench { dir })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(orangery().unwrap());
        command.args(args).env("ORANGERY_LIBRARY", self.dir.path().join("machines"));
        command.env("XDG_RUNTIME_DIR", self.dir.path().join("run"));
        // Nothing of a window may be needed.
        command.env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.ok(&["show", "a", "--json"])).unwrap()
    }

    fn wait_for(&self, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let state = self.state();
            if done(&state) {
                return state;
            }
            assert!(Instant::now() < until, "no {what}: {state}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.state()["running"]["pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in ["a", "b", "c", "d"] {
            let _ = self.run(&["stop", name, "--force"]);
        }
    }
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: kill touches no memory.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn a_machine_runs_once_and_survives_its_process() {
    let Some(bench) = Bench::new("a_machine_runs_once_and_survives_its_process") else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1"]);
    bench.ok(&["start", "a", "--headless"]);
    let first = bench.pid();
    assert_eq!(bench.state()["state"], "running");
    for verb in [&["start", "a", "--headless"][..], &["run", "a", "--headless"], &["delete", "a"]] {
        assert_eq!(bench.run(verb).status.code(), Some(4), "{verb:?}");
    }
    signal(first, libc::SIGKILL);
    bench.wait_for("end", |state| state["state"] == "stopped");
    bench.ok(&["start", "a", "--headless"]);
    assert_ne!(bench.pid(), first);
    bench.ok(&["stop", "a", "--force"]);
    assert_eq!(bench.state()["state"], "stopped");
}

#[test]
fn many_at_once_start_a_machine_once() {
    let Some(bench) = Bench::new("many_at_once_start_a_machine_once") else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1"]);
    let all: Vec<_> = (0..6)
        .map(|_| {
            bench
                .command(&["start", "a", "--headless", "--json"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let codes: Vec<_> = all.into_iter().map(|mut child| child.wait().unwrap().code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|&code| code == 0 || code == 4), "{codes:?}");
}

#[test]
fn a_running_machine_is_paused_watched_and_photographed() {
    let Some(bench) = Bench::new("a_running_machine_is_paused_watched_and_photographed") else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1"]);
    bench.ok(&["start", "a", "--headless"]);
    let mut events = bench.command(&["events", "a"]).stdout(Stdio::piped()).spawn().unwrap();
    bench.wait_for("picture", |state| !state["running"]["screen"].is_null());
    let shot = bench.dir.path().join("a.png");
    bench.ok(&["screenshot", "a", shot.to_str().unwrap(), "--max-width", "100"]);
    let picture = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&shot).unwrap())).read_info().unwrap();
    assert_eq!(picture.info().width, 100);
    bench.ok(&["pause", "a"]);
    assert_eq!(bench.state()["state"], "paused");
    assert_eq!(bench.run(&["pause", "a"]).status.code(), Some(4));
    bench.ok(&["resume", "a"]);
    bench.ok(&["send-keys", "a", "x", "ctrl-alt-delete"]);
    bench.ok(&["reset", "a"]);
    bench.ok(&["stop", "a", "--force"]);
    let mut told = String::new();
    events.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(events.wait().unwrap().success());
    let states: Vec<&str> = told.lines().filter(|line| line.contains("\"power\"")).collect();
    assert_eq!(states.last(), Some(&r#"{"event":"power","power":"stopped"}"#), "{told}");
    assert!(told.contains("paused"), "{told}");
}

/// The processes that `parent` has started and that run still.
fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name is in parentheses and may hold anything; then state and parent.
        let mut rest = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        rest.next() != Some("Z") && rest.next() == Some(&parent.to_string())
    })
    .collect()
}

fn ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "no {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_machine_that_is_killed_takes_its_tpm_s_process_with_it_and_leaves_the_tpm_s_state() {
    let name = "a_machine_that_is_killed_takes_its_tpm_s_process_with_it_and_leaves_the_tpm_s_state";
    let Some(bench) = Bench::new(name) else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1", "--tpm"]);
    let folder = bench.state()["folder"].as_str().unwrap().to_owned();
    let state = Path::new(&folder).join("tpm/tpm2-00.permall");
    bench.ok(&["start", "a", "--headless"]);
    let pid = bench.pid();
    let [tpm] = children(pid)[..] else { panic!("{:?}", children(pid)) };
    let before = std::fs::read(&state).unwrap();
    assert!(before.len() > 1000, "{} bytes", before.len());
    signal(pid, libc::SIGKILL);
    wait_until("end of the TPM's process", || ended(tpm));
    let after = std::fs::read(&state).unwrap();
    assert!(after.len() > 1000, "{} bytes", after.len());
    bench.wait_for("end", |state| state["state"] == "stopped");

    // It is the same TPM: what it keeps begins with its seeds, and it has power again.
    bench.ok(&["start", "a", "--headless"]);
    let pid = bench.pid();
    let [tpm] = children(pid)[..] else { panic!("{:?}", children(pid)) };
    bench.ok(&["stop", "a", "--force"]);
    wait_until("end of both", || ended(tpm) && ended(pid));
    assert!(std::fs::metadata(&state).unwrap().len() > 1000);
}

#[test]
fn a_tpm_that_is_killed_is_a_problem_and_the_machine_runs_on() {
    let Some(bench) = Bench::new("a_tpm_that_is_killed_is_a_problem_and_the_machine_runs_on") else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1", "--tpm"]);
    bench.ok(&["start", "a", "--headless"]);
    let [tpm] = children(bench.pid())[..] else { panic!("no TPM") };
    signal(tpm, libc::SIGKILL);
    bench.ok(&["reset", "a"]);
    let state = bench.wait_for("problem", |state| !state["running"]["problem"].is_null());
    let problem = state["running"]["problem"].as_str().unwrap();
    assert!(problem.contains("swtpm, the process that is the TPM, has ended"), "{problem}");
    assert_eq!(state["state"], "running");
}

#[test]
fn a_missing_swtpm_is_told_with_what_to_install() {
    let Some(bench) = Bench::new("a_missing_swtpm_is_told_with_what_to_install") else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1", "--tpm"]);
    let output = bench.command(&["run", "a", "--headless"]).env("PATH", "/nonexistent").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("install swtpm"), "{said}");
}

#[test]
fn a_second_signal_powers_a_machine_off() {
    let Some(bench) = Bench::new("a_second_signal_powers_a_machine_off") else { return };
    bench.ok(&["create", "a", "--memory", "64", "--cpus", "1"]);
    let mut process = bench.command(&["run", "a", "--headless"]).stderr(Stdio::piped()).spawn().unwrap();
    bench.wait_for("start", |state| state["state"] == "running");
    let pid = i32::try_from(process.id()).unwrap();
    signal(pid, libc::SIGTERM);
    // The machine says that it took the first before the second is sent: two at once would count as one.
    let mut said = [0; 16];
    process.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
    signal(pid, libc::SIGINT);
    assert!(process.wait().unwrap().success());
    assert_eq!(bench.state()["state"], "stopped");
    assert!(!socket_left(bench.dir.path()));
}

fn socket_left(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("run/orangery")).unwrap().count() > 0
}

#[test]
fn a_throwaway_machine_takes_pipes_and_leaves_nothing() {
    let Some(bench) = Bench::new("a_throwaway_machine_takes_pipes_and_leaves_nothing") else { return };
    let probe = bench.dir.path().join("probe.elf");
    std::fs::write(&probe, orangery_assets::PROBE_ELF).unwrap();
    let probe = probe.to_str().unwrap();
    let args = [
        "boot",
        "--headless",
        "--memory",
        "64",
        "--cpus",
        "1",
        "--new-disk",
        "1G",
        "--kernel",
        probe,
        "--cmdline",
        "test=none then=off",
    ];
    let mut command = bench.command(&args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("TMPDIR", bench.dir.path());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(b"\x1d not a terminal: no escape\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("probe: hello"), "{output:?}");
    let left: Vec<_> = std::fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn the_largest_machine_starts_where_programs_may_open_1024_files() {
    let Some(bench) = Bench::new("the_largest_machine_starts_where_programs_may_open_1024_files") else { return };
    let probe = bench.dir.path().join("probe.elf");
    std::fs::write(&probe, orangery_assets::PROBE_ELF).unwrap();
    let mut boot = format!(
        "ulimit -S -n 1024 && exec '{}' boot --headless --memory 128 --cpus 64 --kernel '{}' --cmdline 'test=none then=off'",
        orangery().unwrap().display(),
        probe.display(),
    );
    for _ in 0..16 {
        boot += " --new-disk 1M,bus=nvme";
    }
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "300", "sh", "-c", &boot]).stdin(Stdio::null()).env("TMPDIR", bench.dir.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("probe: hello"), "{output:?}");
}

/// Fills a file system of 4 MiB with a guest's disk of 16 MiB, makes room once the machine is paused, and resumes it.
const FULL_DISK: &str = r#"
set -eu
mount -t tmpfs -o size=4m full "$HOST"
truncate -s 16M "$HOST/disk.img"
"$ORANGERY" create a --memory 64 --cpus 1 --net none --disk "$HOST/disk.img,bus=$BUS" \
    --kernel "$PROBE" --cmdline "$WORDS"
"$ORANGERY" start a --headless
until "$ORANGERY" show a --json | grep -q '"state":"paused"'; do sleep 0.1; done
"$ORANGERY" show a --json
mount -o remount,size=64m "$HOST"
"$ORANGERY" resume a
until "$ORANGERY" show a --json | grep -q '"state":"stopped"'; do sleep 0.1; done
cp "$HOST/disk.img" "$COPY"
"#;

#[test]
fn a_full_host_disk_pauses_the_machine_and_nothing_is_lost() {
    let name = "a_full_host_disk_pauses_the_machine_and_nothing_is_lost";
    for (bus, words) in [
        ("virtio", "test=blk-pattern blkfill=77"),
        ("sata", "test=disk-pattern diskfill=77"),
        ("nvme", "test=nvme-pattern nvmefill=77"),
    ] {
        let Some(bench) = Bench::new(name) else { return };
        a_full_host_disk(&bench, bus, words);
    }
}

fn a_full_host_disk(bench: &Bench, bus: &str, words: &str) {
    let file = |name: &str| bench.dir.path().join(name);
    std::fs::write(file("probe.elf"), orangery_assets::PROBE_ELF).unwrap();
    std::fs::create_dir(file("host")).unwrap();
    // A namespace of its own may mount a small file system without being root.
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "120", "unshare", "--map-root-user", "--mount", "sh", "-c", FULL_DISK]);
    command.env("BUS", bus).env("WORDS", words);
    command.env("ORANGERY", orangery().unwrap()).env("ORANGERY_LIBRARY", file("machines"));
    command.env("XDG_RUNTIME_DIR", file("run")).env_remove("DISPLAY").env_remove("WAYLAND_DISPLAY");
    command.env("HOST", file("host")).env("PROBE", file("probe.elf")).env("COPY", file("copy.img"));
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("no space left"), "{output:?}");
    let mut state = 77u64;
    for (at, chunk) in std::fs::read(file("copy.img")).unwrap().chunks_exact(8).enumerate() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        assert_eq!(chunk, state.to_le_bytes(), "the disk differs at byte {}", 8 * at);
    }
}

/// The last round that a watching guest found all right (docs/probe.md), of what its serial port said.
fn last_round(bench: &Bench) -> u64 {
    let log = std::fs::read_to_string(bench.dir.path().join("machines/a/logs/serial.log")).unwrap_or_default();
    assert!(!log.contains("FAIL"), "{log}");
    let mut rounds = log.lines().filter_map(|line| line.strip_prefix("watch: round ")?.strip_suffix(" holds"));
    rounds.next_back().map_or(0, |round| round.parse().unwrap())
}

fn wait_for_rounds(bench: &Bench, after: u64) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let round = last_round(bench);
        if round > after {
            return round;
        }
        assert!(Instant::now() < until, "the guest does not go on after round {after}: {}", bench.state());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A machine with a guest that watches its memory and its disk.
fn watching(bench: &Bench) {
    let kernel = bench.dir.path().join("probe.elf");
    std::fs::write(&kernel, orangery_assets::PROBE_ELF).unwrap();
    let kernel = kernel.to_str().unwrap();
    let words = "then=watch";
    bench.ok(&[
        "create",
        "a",
        "--memory",
        "96",
        "--cpus",
        "2",
        "--new-disk",
        "16M",
        "--kernel",
        kernel,
        "--cmdline",
        words,
        "--net",
        "unplugged",
    ]);
    bench.ok(&["start", "a", "--headless"]);
}

#[test]
fn a_suspended_machine_goes_on_where_it_was_once() {
    let Some(bench) = Bench::new("a_suspended_machine_goes_on_where_it_was_once") else { return };
    watching(&bench);
    let mut round = wait_for_rounds(&bench, 0);
    for _ in 0..3 {
        bench.ok(&["suspend", "a"]);
        assert_eq!(bench.state()["state"], "suspended");
        assert_eq!(bench.run(&["suspend", "a"]).status.code(), Some(4));
        assert_eq!(bench.run(&["snapshot", "take", "a", "without its memory"]).status.code(), Some(4));
        bench.ok(&["start", "a", "--headless"]);
        // The log is a new one: what the guest counts is not.
        let next = wait_for_rounds(&bench, 0);
        assert!(next > round, "{next} after {round}");
        round = next;
    }
    let saved = std::fs::read_dir(bench.dir.path().join("machines/a/checkpoints")).unwrap().count();
    assert_eq!(saved, 0, "what a machine went on from is still there");
}

#[test]
fn a_suspended_machine_that_was_changed_is_refused_and_can_be_given_up() {
    let Some(bench) = Bench::new("a_suspended_machine_that_was_changed_is_refused_and_can_be_given_up") else { return };
    watching(&bench);
    wait_for_rounds(&bench, 0);
    bench.ok(&["suspend", "a"]);
    let file = bench.dir.path().join("machines/a/machine.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("cpus = 2", "cpus = 3")).unwrap();
    let refused = bench.run(&["start", "a", "--headless"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"), "{refused:?}");
    assert_eq!(bench.state()["state"], "suspended");
    bench.ok(&["stop", "a", "--force"]);
    assert_eq!(bench.state()["state"], "stopped");
    bench.ok(&["start", "a", "--headless"]);
    assert_eq!(bench.state()["state"], "running");
}

fn timeline(bench: &Bench) -> Vec<Value> {
    serde_json::from_str(&bench.ok(&["timeline", "list", "a", "--json"])).unwrap()
}

#[test]
fn a_timeline_leads_back_and_opens_the_past_as_a_copy() {
    let Some(bench) = Bench::new("a_timeline_leads_back_and_opens_the_past_as_a_copy") else { return };
    watching(&bench);
    let before = wait_for_rounds(&bench, 0);
    assert!(bench.ok(&["timeline", "list", "a"]).contains("no timeline"));
    bench.ok(&["timeline", "on", "a", "--every", "60", "--space", "1G"]);
    let until = Instant::now() + PATIENCE;
    while timeline(&bench).is_empty() {
        assert!(Instant::now() < until, "no checkpoint: {}", bench.state());
        std::thread::sleep(Duration::from_millis(50));
    }
    let point = timeline(&bench)[0].clone();
    let id = &point["id"].as_str().unwrap()[..8];
    assert_eq!((&point["running"], snapshots(&bench).len()), (&Value::Bool(true), 0));
    wait_for_rounds(&bench, before + 2);
    // The past as a machine of its own, while this one runs.
    bench.ok(&["timeline", "copy", "a", id, "b"]);
    bench.ok(&["start", "b", "--headless"]);
    let log = || std::fs::read_to_string(bench.dir.path().join("machines/b/logs/serial.log")).unwrap_or_default();
    while !log().contains(" holds") {
        assert!(!log().contains("FAIL") && Instant::now() < until, "{}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    bench.ok(&["stop", "b", "--force"]);
    bench.ok(&["stop", "a", "--force"]);
    let last = last_round(&bench);
    bench.ok(&["timeline", "restore", "a", id]);
    bench.ok(&["start", "a", "--headless"]);
    let back = wait_for_rounds(&bench, 0);
    assert!(back > before && back <= last, "{back} after {before}, before {last}");
    // What it was before it went back is there as well, and a full clone of that moment needs none of this.
    let points = timeline(&bench);
    assert_eq!(points.iter().filter(|point| point["running"] == false).count(), 1);
    bench.ok(&["clone", "a", "c", "--of", id]);
    bench.ok(&["timeline", "off", "a"]);
    for point in points {
        bench.ok(&["timeline", "delete", "a", point["id"].as_str().unwrap()]);
    }
    wait_for_rounds(&bench, last_round(&bench));
    bench.ok(&["stop", "a", "--force"]);
    bench.ok(&["delete", "a"]);
    bench.ok(&["trash", "--empty"]);
    for copy in ["b", "c"] {
        bench.ok(&["start", copy, "--headless"]);
        let state = bench.ok(&["show", copy, "--json"]);
        assert!(state.contains("running"), "{state}");
    }
}

/// The checkpoints once there are this many, the oldest first; there are never more.
fn points(bench: &Bench, count: usize) -> Vec<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let points = timeline(bench);
        if points.len() >= count {
            assert_eq!(points.len(), count, "{points:?}");
            return points;
        }
        assert!(Instant::now() < until, "{} checkpoints, not {count}: {}", points.len(), bench.state());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_a_machine_loses_stays_on_its_timeline_first() {
    let Some(bench) = Bench::new("what_a_machine_loses_stays_on_its_timeline_first") else { return };
    watching(&bench);
    wait_for_rounds(&bench, 0);
    bench.ok(&["timeline", "on", "a", "--every", "1000", "--space", "4G"]);
    points(&bench, 1);
    let before = wait_for_rounds(&bench, last_round(&bench));
    bench.ok(&["reset", "a"]);
    let kept = points(&bench, 2)[1].clone();
    assert_eq!(kept["running"], true);
    bench.ok(&["reset", "a", "--without-checkpoint"]);
    points(&bench, 2);
    // Where it can't be kept nothing is done, and how to do it all the same is told.
    let folder = bench.dir.path().join("machines/a");
    let [checkpoints, away] = ["checkpoints", "away"].map(|name| folder.join(name));
    std::fs::rename(&checkpoints, &away).unwrap();
    std::fs::write(&checkpoints, "").unwrap();
    for verb in [&["reset", "a"][..], &["stop", "a", "--force"]] {
        let refused = bench.run(verb);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains("--without-checkpoint"), "{verb:?}: {said}");
        assert_eq!(bench.state()["state"], "running");
    }
    bench.ok(&["reset", "a", "--without-checkpoint"]);
    std::fs::remove_file(&checkpoints).unwrap();
    std::fs::rename(&away, &checkpoints).unwrap();
    bench.ok(&["stop", "a", "--force"]);
    assert_eq!(bench.state()["state"], "stopped");
    assert_eq!(points(&bench, 3)[2]["running"], true);
    // The guest goes on from before it was reset.
    bench.ok(&["timeline", "restore", "a", kept["id"].as_str().unwrap(), "--without-checkpoint"]);
    bench.ok(&["start", "a", "--headless"]);
    assert!(wait_for_rounds(&bench, 0) > before);
    // What it was suspended in is a checkpoint when that is given up.
    let round = wait_for_rounds(&bench, last_round(&bench));
    bench.ok(&["suspend", "a"]);
    bench.ok(&["stop", "a", "--force"]);
    assert_eq!(bench.state()["state"], "stopped");
    let suspended = points(&bench, 4)[3].clone();
    assert_eq!((&suspended["running"], &suspended["present"]), (&Value::Bool(true), &Value::Bool(true)));
    bench.ok(&["timeline", "restore", "a", suspended["id"].as_str().unwrap(), "--without-checkpoint"]);
    bench.ok(&["start", "a", "--headless"]);
    assert!(wait_for_rounds(&bench, 0) > round);
}

#[test]
fn going_back_while_it_runs_keeps_the_present_once() {
    let Some(bench) = Bench::new("going_back_while_it_runs_keeps_the_present_once") else { return };
    watching(&bench);
    wait_for_rounds(&bench, 0);
    bench.ok(&["timeline", "on", "a", "--every", "1000", "--space", "4G"]);
    let first = points(&bench, 1)[0]["id"].as_str().unwrap().to_string();
    let round = wait_for_rounds(&bench, last_round(&bench));
    bench.ok(&["timeline", "restore", "a", &first, "--power-off"]);
    let now = points(&bench, 2);
    assert!(now.iter().all(|point| point["running"] == true), "{now:?}");
    bench.ok(&["timeline", "restore", "a", now[1]["id"].as_str().unwrap(), "--without-checkpoint"]);
    points(&bench, 2);
    bench.ok(&["start", "a", "--headless"]);
    assert!(wait_for_rounds(&bench, 0) > round);
}

#[test]
fn all_who_save_a_machine_at_once_have_their_turn() {
    let Some(bench) = Bench::new("all_who_save_a_machine_at_once_have_their_turn") else { return };
    watching(&bench);
    let round = wait_for_rounds(&bench, 0);
    let names = ["s1", "s2", "s3", "s4"];
    let mut all: Vec<_> = names
        .iter()
        .map(|name| bench.command(&["snapshot", "take", "a", name]).stderr(Stdio::piped()).spawn().unwrap())
        .collect();
    all.push(bench.command(&["timeline", "on", "a", "--every", "1000"]).stderr(Stdio::piped()).spawn().unwrap());
    for child in all {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let mut taken: Vec<String> = snapshots(&bench).iter().map(|s| s["name"].as_str().unwrap().into()).collect();
    taken.sort();
    assert_eq!(taken, names);
    points(&bench, 1);
    wait_for_rounds(&bench, round);
    // One that waits sees the machine end before it has its turn, or is done: in any case the machine starts.
    let suspend = bench.command(&["suspend", "a"]).stderr(Stdio::null()).spawn().unwrap();
    let late = bench.command(&["snapshot", "take", "a", "late"]).stderr(Stdio::null()).spawn().unwrap();
    for child in [suspend, late] {
        child.wait_with_output().unwrap();
    }
    bench.wait_for("end", |state| state["state"] == "suspended");
    bench.ok(&["start", "a", "--headless"]);
    wait_for_rounds(&bench, 0);
}

#[test]
fn what_a_machine_without_saving_does_is_gone_when_it_ends() {
    let Some(bench) = Bench::new("what_a_machine_without_saving_does_is_gone_when_it_ends") else { return };
    watching(&bench);
    let round = wait_for_rounds(&bench, 0);
    bench.ok(&["suspend", "a"]);
    let folder = bench.dir.path().join("machines/a");
    let files = |name: &str| {
        let all = std::fs::read_dir(folder.join(name)).unwrap().flatten();
        all.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap())).collect::<Vec<_>>()
    };
    let before = (std::fs::read(folder.join("machine.toml")).unwrap(), files("disks"), files("checkpoints"));
    for _ in 0..2 {
        bench.ok(&["start", "a", "--headless", "--without-saving"]);
        let next = wait_for_rounds(&bench, 0);
        assert!(next > round, "{next} after {round}");
        for verb in [&["suspend", "a"][..], &["snapshot", "take", "a", "s"], &["fork", "a", "b"]] {
            let refused = bench.run(verb);
            assert!(String::from_utf8_lossy(&refused.stderr).contains("without saving"), "{verb:?}: {refused:?}");
        }
        wait_for_rounds(&bench, next + 1);
        bench.ok(&["stop", "a", "--force"]);
        assert_eq!(bench.state()["state"], "suspended");
        assert!(!folder.join("unsaved").exists());
        let now = (std::fs::read(folder.join("machine.toml")).unwrap(), files("disks"), files("checkpoints"));
        assert_eq!(now, before);
    }
    // And it still goes on where it was.
    bench.ok(&["start", "a", "--headless"]);
    assert!(wait_for_rounds(&bench, 0) > round);
}

fn snapshots(bench: &Bench) -> Vec<Value> {
    serde_json::from_str(&bench.ok(&["snapshot", "list", "a", "--json"])).unwrap()
}

#[test]
fn snapshots_of_a_running_machine_lead_back_to_their_moments() {
    let Some(bench) = Bench::new("snapshots_of_a_running_machine_lead_back_to_their_moments") else { return };
    watching(&bench);
    let mut round = wait_for_rounds(&bench, 0);
    for name in ["one", "two", "three"] {
        bench.ok(&["snapshot", "take", "a", name]);
        round = wait_for_rounds(&bench, round);
    }
    let taken = snapshots(&bench);
    assert_eq!(taken.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert!(taken[1]["parent"] == taken[0]["id"] && taken[2]["present"] == true, "{taken:?}");
    bench.ok(&["snapshot", "edit", "a", "two", "--name", "second", "--note", "while it runs"]);
    let edited = snapshots(&bench)[1].clone();
    assert!(edited["name"] == "second" && edited["note"] == "while it runs" && edited["id"] == taken[1]["id"]);
    bench.ok(&["snapshot", "edit", "a", "second", "--name", "two"]);
    assert_eq!(snapshots(&bench)[1]["note"], "while it runs");
    assert_eq!(bench.run(&["snapshot", "restore", "a", "one"]).status.code(), Some(4), "while it runs");
    bench.ok(&["stop", "a", "--force"]);
    // Back and forth: the guest sees that RAM and disk are of one moment, each time.
    for name in ["two", "one", "three"] {
        bench.ok(&["snapshot", "restore", "a", name]);
        assert_eq!(bench.state()["state"], "suspended");
        bench.ok(&["start", "a", "--headless"]);
        let back = wait_for_rounds(&bench, 0);
        wait_for_rounds(&bench, back);
        bench.ok(&["stop", "a", "--force"]);
    }
    // What is deleted takes nothing else with it, whether the machine runs or not.
    bench.ok(&["snapshot", "delete", "a", "two"]);
    bench.ok(&["snapshot", "restore", "a", "three"]);
    bench.ok(&["start", "a", "--headless"]);
    round = wait_for_rounds(&bench, 0);
    bench.ok(&["snapshot", "delete", "a", "one"]);
    round = wait_for_rounds(&bench, round);
    bench.ok(&["snapshot", "delete", "a", "three"]);
    wait_for_rounds(&bench, round);
    assert!(snapshots(&bench).is_empty());
    bench.ok(&["stop", "a", "--force"]);
    // The images are merged as far as can be while it runs: the one it writes to, and what it stands on.
    let images = std::fs::read_dir(bench.dir.path().join("machines/a/disks")).unwrap().count();
    assert_eq!(images, 2);
    let left = std::fs::read_dir(bench.dir.path().join("machines/a/checkpoints")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_process_that_is_killed_while_it_saves_leaves_a_machine_that_starts() {
    let test = "a_process_that_is_killed_while_it_saves_leaves_a_machine_that_starts";
    let Some(bench) = Bench::new(test) else { return };
    watching(&bench);
    wait_for_rounds(&bench, 0);
    // At any instant: each time a little later, in turn while a snapshot is taken, deleted, and the machine is suspended.
    for step in 0u64..12 {
        let verb: &[&str] = match step % 3 {
            0 => &["snapshot", "take", "a", "point"],
            1 => &["snapshot", "delete", "a", "point"],
            _ => &["suspend", "a"],
        };
        let mut child = bench.command(verb).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(4 + step * 7));
        if let Some(pid) = bench.state()["running"]["pid"].as_i64() {
            signal(i32::try_from(pid).unwrap(), libc::SIGKILL);
        }
        child.wait().unwrap();
        bench.wait_for("end", |state| state["state"] == "stopped" || state["state"] == "suspended");
        for entry in std::fs::read_dir(bench.dir.path().join("machines/a/disks")).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "qcow2") {
                // Clusters that leaked cost space and nothing else.
                let _leaks = qemu::check(&entry.path()).unwrap_or_else(|error| panic!("{step}: {error:#}"));
            }
        }
        bench.ok(&["start", "a", "--headless"]);
        // One that goes on, or one that starts anew: either holds.
        wait_for_rounds(&bench, 0);
    }
}

#[test]
fn forks_go_on_beside_their_machine_and_share_its_memory() {
    let Some(bench) = Bench::new("forks_go_on_beside_their_machine_and_share_its_memory") else { return };
    watching(&bench);
    let round = wait_for_rounds(&bench, 0);
    let forks = ["b", "c", "d"];
    bench.ok(&["fork", "a", "b"]);
    bench.ok(&["fork", "a", "c"]);
    // One of a fork.
    bench.ok(&["fork", "b", "d"]);
    wait_for_rounds(&bench, round);
    let log = |name: &str| {
        std::fs::read_to_string(bench.dir.path().join(format!("machines/{name}/logs/serial.log"))).unwrap_or_default()
    };
    let until = Instant::now() + PATIENCE;
    for fork in forks {
        while !log(fork).contains(" holds") {
            assert!(!log(fork).contains("FAIL") && Instant::now() < until, "{fork}: {}", log(fork));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // Each has an address of its own, and is in no network.
    let card = |name: &str| {
        let text = std::fs::read_to_string(bench.dir.path().join(format!("machines/{name}/machine.toml"))).unwrap();
        text.lines().find_map(|line| line.strip_prefix("mac = ").map(str::to_string))
    };
    let cards: std::collections::BTreeSet<_> = forks.iter().map(|fork| card(fork).unwrap()).collect();
    assert_eq!((cards.len(), card("a")), (3, None));
    // Without its machine, and without what it was made of.
    bench.ok(&["stop", "a", "--force"]);
    bench.ok(&["delete", "a"]);
    bench.ok(&["trash", "--empty"]);
    for fork in forks {
        let seen = log(fork).matches(" holds").count();
        while log(fork).matches(" holds").count() == seen {
            assert!(!log(fork).contains("FAIL") && Instant::now() < until, "{fork}: {}", log(fork));
            std::thread::sleep(Duration::from_millis(50));
        }
        bench.ok(&["stop", fork, "--force"]);
        bench.ok(&["start", fork, "--headless"]);
        bench.ok(&["stop", fork, "--force"]);
    }
}
