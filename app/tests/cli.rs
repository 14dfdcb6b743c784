//! The command line as scripts use it: verbs that need no guest, on a library of their own, by the real program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A library and a runtime folder that nobody else uses.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        Bench { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("machines")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orangery"));
        command.args(args).env("ORANGERY_LIBRARY", self.root()).env("XDG_RUNTIME_DIR", self.dir.path().join("run"));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a verb that must succeed, and returns what it printed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with `--json`.
    fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat());
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Runs a verb that must fail with `code`, and returns what it wrote to standard error.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().into()
    }

    fn names(&self) -> Vec<String> {
        let list = self.json(&["list"]);
        list.as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_string()).collect()
    }
}

/// A process that holds a machine's lock, as one that runs it does: this test program, started again.
struct Holder {
    child: Child,
}

const HOLD: &str = "ORANGERY_TEST_HOLD";

impl Holder {
    fn start(folder: &Path) -> Holder {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "holds_a_lock_when_told", "--nocapture"]).env(HOLD, folder);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("held")));
        Holder { child }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Does nothing as a test; as [`Holder`]'s child it holds a lock until its input ends.
#[test]
fn holds_a_lock_when_told() {
    let Some(folder) = std::env::var_os(HOLD) else { return };
    let _lock = orangery::library::lock::VmLock::take(Path::new(&folder), true).unwrap().unwrap();
    println!("held");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

#[test]
fn a_machine_is_made_shown_renamed_deleted_and_brought_back() {
    let bench = Bench::new();
    assert!(bench.ok(&["list"]).contains("orangery create"));
    let iso = bench.file("cd.iso", b"");
    let data = bench.file("data.img", &[0; 512]);
    bench.ok(&[
        "create",
        "Debian 12",
        "--cdrom",
        &iso,
        "--new-disk",
        "1G",
        "--disk",
        &format!("{data},ro,bus=sata"),
        "--memory",
        "512",
        "--cpus",
        "2",
        "--net",
        "tap=tap7",
    ]);
    let shown = bench.json(&["show", "debian 12"]);
    let folder = bench.root().join("debian-12");
    assert_eq!(shown["folder"], folder.to_str().unwrap());
    assert_eq!((&shown["state"], &shown["name"]), (&"stopped".into(), &"Debian 12".into()));
    let config = &shown["config"];
    assert_eq!((&config["cpus"], &config["memory_mib"]), (&2.into(), &512.into()));
    assert_eq!(config["disks"][0]["path"], data);
    assert_eq!(config["disks"][0]["readonly"], true);
    assert_eq!((&config["disks"][0]["bus"], &config["disks"][1]["bus"]), (&"sata".into(), &Value::Null));
    assert_eq!(config["disks"][1]["path"], folder.join("disks/disk-1.raw").to_str().unwrap());
    assert_eq!(config["cdroms"][0]["path"], iso);
    assert_eq!(config["nets"][0]["tap"], "tap7");
    let words = bench.ok(&["show", "Debian 12"]);
    assert!(words.contains("512 MiB") && words.contains("1 GiB") && words.contains("read-only, SATA"), "{words}");

    bench.ok(&["rename", "Debian 12", "Bookworm"]);
    bench.fails(3, &["show", "Debian 12 "]);
    assert_eq!(bench.json(&["delete", "bookworm"])["name"], "Bookworm");
    assert_eq!(bench.names(), [""; 0]);
    assert_eq!(bench.json(&["trash"])[0]["name"], "Bookworm");
    assert_eq!(bench.json(&["restore", "Bookworm"])["id"], shown["id"]);
    assert_eq!(bench.names(), ["Bookworm"]);
    assert_eq!(std::fs::metadata(bench.root().join("bookworm/disks/disk-1.raw")).unwrap().len(), 1 << 30);

    bench.ok(&["delete", "Bookworm"]);
    assert_eq!(bench.json(&["trash", "--empty"])["removed"], 1);
    bench.fails(3, &["restore", "Bookworm"]);
    assert!(Path::new(&data).exists() && Path::new(&iso).exists());
}

#[test]
fn relative_paths_are_kept_absolute() {
    let bench = Bench::new();
    let iso = bench.file("cd.iso", b"");
    bench.ok(&["create", "a", "--cdrom", "cd.iso"]);
    let path = bench.json(&["show", "a"])["config"]["cdroms"][0]["path"].as_str().unwrap().to_string();
    assert_eq!(std::fs::canonicalize(path).unwrap(), std::fs::canonicalize(iso).unwrap());
}

#[test]
fn exit_codes_are_what_help_says() {
    let bench = Bench::new();
    bench.ok(&["create", "a"]);
    assert!(bench.fails(2, &["levitate"]).contains("Usage"));
    bench.fails(2, &["create"]);
    bench.fails(2, &["create", "b", "--memory", "0"]);
    bench.fails(2, &["create", "b", "--cpus", "1000"]);
    bench.fails(2, &["create", "b", "--new-disk", "40X"]);
    assert!(bench.fails(2, &["create", "b", "--new-disk", "40G,bus=scsi"]).contains("virtio or sata"));
    let seven = ["--new-disk", "1M,bus=sata"].repeat(7);
    assert!(bench.fails(2, &[&["create", "b"][..], &seven].concat()).contains("6 ports"));
    bench.fails(2, &["create", "b", "--net", "wifi"]);
    bench.fails(2, &["create", "b", "--initrd", "x"]);
    bench.fails(2, &["create", " "]);
    bench.fails(2, &["send-keys", "a", "ü"]);
    bench.fails(1, &["create", "b", "--cdrom", "/no/such.iso"]);
    for verb in ["show", "run", "start", "stop", "delete", "console", "pause", "events", "restore"] {
        assert!(bench.fails(3, &[verb, "nobody"]).contains("nobody"), "{verb}");
    }
    bench.fails(4, &["create", "A"]);
    for verb in ["stop", "console", "pause", "resume", "reset", "raise", "events"] {
        assert!(bench.fails(4, &[verb, "a"]).contains("not running"), "{verb}");
    }
    bench.fails(4, &["screenshot", "a", "a.png"]);
    bench.fails(4, &["send-keys", "a", "enter"]);
    assert_eq!(bench.names(), ["a"]);
}

#[test]
fn a_machine_has_the_firmware_that_was_asked_for() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--firmware", "uefi", "--boot-menu"]);
    let boot = &bench.json(&["show", "a"])["config"]["boot"];
    assert_eq!((&boot["kind"], &boot["menu"]), (&"uefi".into(), &true.into()));
    assert!(boot["variables"].as_str().unwrap().ends_with("/a/nvram.fd"), "{boot}");
    assert_eq!(bench.json(&["nvram-reset", "a"])["had"], false);
    bench.ok(&["create", "b", "--firmware", "bios"]);
    assert_eq!(bench.json(&["show", "b"])["config"]["boot"]["kind"], "bios");
    bench.fails(4, &["nvram-reset", "b"]);
    bench.fails(3, &["nvram-reset", "nobody"]);
    bench.fails(2, &["create", "c", "--firmware", "uefi", "--memory", "64"]);
    bench.fails(2, &["create", "c", "--firmware", "coreboot"]);
    bench.fails(2, &["create", "c", "--firmware", "bios", "--boot-menu"]);
    bench.fails(2, &["create", "c", "--firmware", "bios", "--kernel", "x"]);
    // Too little memory for UEFI gets a BIOS, unasked.
    bench.ok(&["create", "c", "--memory", "64"]);
    assert_eq!(bench.json(&["show", "c"])["config"]["boot"]["kind"], "bios");
}

#[test]
fn errors_are_json_too() {
    let bench = Bench::new();
    let output = bench.run(&["show", "nobody", "--json"]);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["error"]["code"], 3);
    assert!(error["error"]["message"].as_str().unwrap().contains("nobody"));
    assert!(!output.stderr.is_empty());
}

#[test]
fn a_broken_file_is_told_and_hurts_no_other() {
    let bench = Bench::new();
    bench.ok(&["create", "good"]);
    bench.ok(&["create", "bad"]);
    let file = bench.root().join("bad/machine.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("memory_mib = ", "memory_mib = -")).unwrap();
    let list = bench.json(&["list"]);
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&"bad".into(), &"broken".into()));
    assert_eq!((&list[1]["name"], &list[1]["state"]), (&"good".into(), &"stopped".into()));
    for message in [list[0]["error"].as_str().unwrap().to_string(), bench.fails(1, &["show", "bad"])] {
        assert!(message.contains("machine.toml, line 6: memory_mib"), "{message}");
    }
    bench.ok(&["show", "good"]);
}

#[test]
fn a_running_machine_is_not_started_deleted_or_lost_when_its_process_is_killed() {
    let bench = Bench::new();
    bench.ok(&["create", "a"]);
    let holder = Holder::start(&bench.root().join("a"));
    let pid = holder.child.id();
    let list = bench.json(&["list"]);
    assert_eq!((&list[0]["state"], &list[0]["pid"]), (&"starting".into(), &pid.into()));
    for verb in [&["start", "a"][..], &["run", "a", "--headless"], &["delete", "a"]] {
        let message = bench.fails(4, verb);
        assert!(message.contains(&pid.to_string()), "{verb:?}: {message}");
    }
    // It holds the lock and has no socket: it does not answer, and only force ends it.
    bench.fails(4, &["stop", "a"]);
    bench.ok(&["stop", "a", "--force"]);
    assert_eq!(bench.json(&["list"])[0]["state"], "stopped");
    holder.kill();
    Holder::start(&bench.root().join("a")).kill();
    bench.ok(&["delete", "a"]);
}

#[test]
fn a_snapshot_is_taken_edited_and_deleted_of_a_machine_that_is_off() {
    let bench = Bench::new();
    bench.ok(&["create", "a", "--new-disk", "16M"]);
    bench.ok(&["snapshot", "take", "a", "one", "--note", "first"]);
    let first = || bench.json(&["snapshot", "list", "a"])[0].clone();
    bench.ok(&["snapshot", "edit", "a", "one", "--name", "two"]);
    assert!(first()["name"] == "two" && first()["note"] == "first");
    bench.ok(&["snapshot", "edit", "a", "two", "--note", ""]);
    assert!(first()["name"] == "two" && first()["note"].is_null());
    bench.fails(2, &["snapshot", "edit", "a", "two"]);
    bench.fails(2, &["snapshot", "edit", "a", "two", "--name", " "]);
    bench.fails(3, &["snapshot", "edit", "a", "one", "--name", "three"]);
    bench.ok(&["snapshot", "delete", "a", "two"]);
    assert_eq!(bench.json(&["snapshot", "list", "a"]).as_array().unwrap().len(), 0);
}

#[test]
fn media_are_changed_for_the_next_start() {
    let bench = Bench::new();
    let mut iso = vec![0; 2048 * 20];
    iso[0x8000..0x8006].copy_from_slice(b"\x01CD001");
    let iso = bench.file("cd.iso", &iso);
    bench.ok(&["create", "a"]);
    bench.ok(&["insert", "a", &iso]);
    assert_eq!(bench.json(&["show", "a"])["config"]["cdroms"][0]["path"], iso);
    bench.ok(&["eject", "a"]);
    assert_eq!(bench.json(&["show", "a"])["config"]["cdroms"][0]["path"], Value::Null);
    bench.fails(2, &["insert", "a", &iso, "--drive", "3"]);
    bench.fails(1, &["insert", "a", "/no/such.iso"]);
}

#[test]
fn a_file_is_told_for_what_it_is() {
    let bench = Bench::new();
    let qcow = bench.file("disk.img", b"QFI\xfb\0\0\0\x03");
    assert!(bench.fails(1, &["detect", &qcow]).contains("damaged"));
    let vmdk = bench.file("disk.vmdk", &[&b"KDMV\x01\0\0\0"[..], &[0; 2000]].concat());
    assert!(bench.fails(1, &["detect", &vmdk]).contains("disk convert"));
    let made = bench.file("made.qcow2", b"");
    std::fs::remove_file(&made).unwrap();
    bench.ok(&["disk", "create", &made, "64M"]);
    assert_eq!(bench.json(&["detect", &made])["size"], 64 << 20);
    let mut disk = vec![0; 1024];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let detected = bench.json(&["detect", &bench.file("Old PC.img", &disk)]);
    assert_eq!((&detected["kind"], &detected["table"]), (&"disk".into(), &"mbr".into()));
    assert_eq!(detected["suggested_name"], "Old PC");
}

#[test]
fn help_names_every_verb_of_the_manual_and_shows_examples() {
    let bench = Bench::new();
    let help = bench.ok(&["--help"]);
    for word in ["create", "boot", "run", "stop", "delete", "console", "screenshot", "send-keys", "demo", "Examples:"] {
        assert!(help.contains(word), "{word}");
    }
    for verb in ["create", "boot"] {
        let help = bench.ok(&[verb, "--help"]);
        for flag in [
            "--cdrom",
            "--disk",
            "--new-disk",
            "--kernel",
            "--initrd",
            "--cmdline",
            "--memory",
            "--cpus",
            "--headless",
            "--net",
        ] {
            assert!(help.contains(flag), "{verb} {flag}");
        }
    }
    assert!(bench.ok(&["--version"]).starts_with("orangery "));
}

#[test]
fn what_no_guest_can_be_made_of_is_refused_before_it_starts() {
    let bench = Bench::new();
    let message = bench.fails(2, &["boot", "--headless", "--cpus", "0", "--memory", "64"]);
    assert!(message.contains("cpus"), "{message}");
}
