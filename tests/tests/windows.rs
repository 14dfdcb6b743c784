//! The windows, driven as a person drives them: with key presses and clicks on a virtual desktop, where controls are
//! found by what a screen reader knows of them. Screenshots stay in `artifacts/windows-*`.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use orangery_tests::desktop::{Desktop, HOST_KEY, Window};
use orangery_tests::kvm::Kvm;
use orangery_tests::screen::{Font, Image};
use orangery_tests::script::{Op, Script, say};
use orangery_tests::{media, orangery, report};

/// How long firmware and GRUB may take: a software KVM that shares its computer needs minutes.
const BOOT: Duration = Duration::from_secs(1200);
/// How often a guest's screen is looked at while it starts.
const LOOK: Duration = Duration::from_millis(500);
/// The console's bars above and below the guest's picture, pixels.
const TOOLBAR: usize = 40;
const BARS: usize = 66;

/// evdev codes.
mod key {
    pub const ESC: u16 = 1;
    pub const CTRL: u16 = 29;
    pub const A: u16 = 30;
    pub const SHIFT: u16 = 42;
    pub const X: u16 = 45;
    pub const B: u16 = 48;
    pub const ALT: u16 = 56;
    pub const DELETE: u16 = 111;
    pub const BUTTON_LEFT: u16 = 0x110;
}

/// A desktop, where there is a /dev/kvm; otherwise the test is counted as skipped.
fn desktop(test: &str, name: &str) -> Result<Option<Desktop>> {
    if Kvm::detect() == Kvm::None {
        report::skip(2, test, "there is no usable /dev/kvm");
        return Ok(None);
    }
    let mut desktop = Desktop::start(name, 1280, 960)?;
    desktop.listen()?;
    Ok(Some(desktop))
}

/// A machine of the desktop's library. It is powered off when the test ends, however it does: its process is not the
/// test's.
struct Machine<'d> {
    desktop: &'d Desktop,
    name: &'static str,
    font: Font,
}

impl Machine<'_> {
    /// What `orangery` with these words prints.
    fn orangery(&self, words: &[&str]) -> Result<String> {
        let output = self.desktop.command(orangery()?).args(words).output().context("could not run orangery")?;
        ensure!(output.status.success(), "orangery {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The guest's screen as the machine has it, if it is on.
    fn screen(&self) -> Option<Image> {
        let path = self.desktop.folder().join("guest.png");
        self.orangery(&["screenshot", self.name, path.to_str()?]).ok()?;
        Image::read(&path).ok()
    }

    /// The text on a screen, without the lines below it and the cursor's line.
    fn read(&self, screen: &Image) -> String {
        self.font.read(screen).trim_end().trim_end_matches(['_', '\u{FFFD}']).trim_end().to_owned()
    }

    /// The text on the guest's screen.
    fn text(&self) -> Result<String> {
        thread::sleep(LOOK);
        Ok(self.screen().map(|screen| self.read(&screen)).unwrap_or_default())
    }

    /// Waits until the window shows, pixel by pixel, what the guest does, and the text there is as wanted.
    fn shows(&self, window: &Window<'_>, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.desktop.within(BOOT, what, || {
            thread::sleep(LOOK);
            let Some(guest) = self.screen() else { return Ok(None) };
            let text = self.read(&guest);
            // The guest's screen may change between the two pictures: then the next ones tell.
            let seen = wanted(&text) && window.screenshot("window")?.find(&guest).is_some();
            Ok(seen.then_some(text))
        })
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // It may have stopped, or never been made.
        let _ = self.orangery(&["stop", self.name, "--force"]);
    }
}

#[test]
fn a_disc_is_opened_started_seen_typed_to_and_turned_off() -> Result<()> {
    let Some(mut desktop) = desktop("a_disc_is_opened_started_seen_typed_to_and_turned_off", "windows-disc")? else {
        return Ok(());
    };
    fs::copy(media::grub_rescue_iso()?, desktop.home().join("grub.iso")).context("could not copy the disc")?;
    let program = desktop.command(orangery()?);
    desktop.launch("manager", program)?;
    let machine = Machine { desktop: &desktop, name: "grub", font: Font::vga()? };
    let manager = desktop.window("^Orangery$")?;
    manager.control("What would you like to run?")?;
    manager.screenshot("1-empty")?;

    manager.press("Open a file")?;
    desktop.until("the keyboard in the path", || Ok(manager.control("Path")?.focused.then_some(())))?;
    manager.type_text("grub")?;
    manager.control("grub.iso")?;
    manager.screenshot("2-open")?;
    manager.keys(&["Return"])?;
    manager.control("Create and start")?;
    manager.screenshot("3-new")?;
    manager.press("Create and start")?;

    let console = desktop.window("grub .+ Orangery$")?;
    console.focus()?;
    console.screenshot("4-started")?;
    // 1:1, so that the window's pixels are the guest's.
    console.host("c")?;
    machine.shows(&console, "GRUB's menu", |text| text.contains("for a command-line"))?;
    console.screenshot("5-menu")?;
    // The menu starts its first entry after half a minute, finds no such system, and comes back when a key is pressed.
    let mut last = String::new();
    desktop.within(BOOT, "GRUB's prompt", || {
        let text = machine.text()?;
        // The countdown goes on while the key is on its way.
        let screen: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        if (text.contains("for a command-line") || text.contains("Press any key")) && screen != last {
            console.keys(&["c"])?;
            last = screen;
        }
        Ok(text.contains("grub>").then_some(()))
    })?;
    // What was pressed too often is on the line.
    console.keys(&["ctrl+u"])?;
    machine.shows(&console, "an empty line", |text| text.ends_with("grub>"))?;
    // Key by key, because a guest this slow loses what is typed faster, as on any computer.
    let command = "echo Seen";
    for end in 1..=command.len() {
        console.type_text(&command[end - 1..end])?;
        let line = format!("grub> {}", &command[..end]);
        machine.shows(&console, &line, |text| text.ends_with(line.trim_end()))?;
    }
    console.keys(&["Return"])?;
    machine.shows(&console, "the answer", |text| text.lines().any(|line| line == "Seen"))?;
    let typed = console.screenshot("6-typed")?;

    console.close()?;
    console.control("Keep running")?;
    desktop.until("the dialog's picture", || {
        Ok((console.screenshot("7-closing")?.differences(&typed) > 1000).then_some(()))
    })?;
    console.press("Cancel")?;
    desktop.until("the dialog's end", || Ok((!console.shows("Keep running")?).then_some(())))?;
    assert!(console.is_open()?, "Cancel closed the window");
    // The machine goes on without a window, and gets a new one.
    console.close()?;
    console.press("Keep running")?;
    desktop.until("the window's end", || Ok((!console.is_open()?).then_some(())))?;
    manager.control("grub, running")?;
    manager.screenshot("8-running")?;
    manager.press("Show console")?;
    let console = desktop.window("grub .+ Orangery$")?;
    console.control("Power menu")?;
    console.close()?;
    console.press("Power off")?;
    desktop.until("the window's end", || Ok((!console.is_open()?).then_some(())))?;
    manager.control("grub, stopped")?;
    manager.screenshot("9-stopped")?;
    let state: serde_json::Value = serde_json::from_str(&machine.orangery(&["show", "grub", "--json"])?)?;
    assert_eq!(state["state"], "stopped");

    // To the trash and back.
    manager.focus()?;
    manager.keys(&["Delete"])?;
    manager.control("What would you like to run?")?;
    manager.screenshot("10-deleted")?;
    manager.press("Undo")?;
    manager.control("grub, stopped")?;

    // Its settings stick.
    manager.resize(1200, 900)?;
    manager.press("Hardware")?;
    manager.press("Add a drive")?;
    manager.press("Save changes")?;
    desktop.until("the kept settings", || {
        let machine: serde_json::Value = serde_json::from_str(&machine.orangery(&["show", "grub", "--json"])?)?;
        Ok((machine["config"]["cdroms"].as_array().context("the machine has no drives")?.len() == 2).then_some(()))
    })?;
    manager.screenshot("11-settings")?;
    Ok(())
}

/// The events that the probe printed: kind, code, value.
fn events(log: &str) -> Vec<(u16, u16, i32)> {
    let event = |line: &str| {
        let words = line.trim_end().strip_prefix("input device=")?;
        let number = |name: &str| words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Some((number("kind")?.parse().ok()?, number("code")?.parse().ok()?, number("value")?.parse().ok()?))
    };
    log.lines().filter_map(event).collect()
}

/// The probe in a window.
struct Probe<'d> {
    desktop: &'d Desktop,
    log: PathBuf,
    heard: usize,
}

impl Probe<'_> {
    fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log).context("could not read the probe's log")?).into_owned())
    }

    /// Waits until the probe has printed the text.
    fn says(&self, text: &str) -> Result<()> {
        self.desktop.until(&format!("'{text}' from the probe"), || Ok(self.log()?.contains(text).then_some(())))
    }

    /// Waits until just these keys and buttons went down (true) and up, since it was last asked.
    fn hears(&mut self, expected: &[(u16, bool)]) -> Result<()> {
        let mut heard = Vec::new();
        let result = self.desktop.until("the keys in the guest", || {
            heard = keys(&events(&self.log()?));
            Ok((heard.len() >= self.heard + expected.len()).then_some(()))
        });
        let new = heard.get(self.heard..).unwrap_or_default().to_vec();
        result.with_context(|| format!("the guest heard {new:?} of {expected:?}"))?;
        assert_eq!(new, expected);
        self.heard = heard.len();
        Ok(())
    }
}

fn keys(events: &[(u16, u16, i32)]) -> Vec<(u16, bool)> {
    events.iter().filter(|event| event.0 == 1).map(|event| (event.1, event.2 != 0)).collect()
}

#[test]
fn keys_and_pointer_of_the_console_reach_the_guest_and_none_is_left_down() -> Result<()> {
    let test = "keys_and_pointer_of_the_console_reach_the_guest_and_none_is_left_down";
    let Some(mut desktop) = desktop(test, "windows-input")? else { return Ok(()) };
    let kernel = desktop.home().join("probe.elf");
    fs::write(&kernel, orangery_assets::PROBE_ELF).context("could not write the probe")?;
    let mut program = desktop.command(orangery()?);
    program.arg("boot").arg("--kernel").arg(&kernel).args(["--cmdline", "test=cpu demo inputecho", "--memory", "128"]);
    desktop.launch("probe", program)?;
    let other = desktop.command("xev");
    desktop.launch("other", other)?;
    let mut probe = Probe { desktop: &desktop, log: desktop.folder().join("probe.log"), heard: 0 };
    let (console, other) = (desktop.window(".+ Orangery$")?, desktop.window("Event Tester")?);
    probe.says("probe: demo ")?;

    // The guest follows the window's size, and a pixel of the window is one of the guest's.
    console.focus()?;
    console.resize(1000, 700 + BARS)?;
    probe.says("probe: demo 1000x700 on virtio-gpu")?;
    // egui knows of the new size when the status bar says so.
    console.control("1000 × 700")?;
    console.screenshot("1-demo")?;

    // Keys, with and without Shift, which xdotool lets go before the letter.
    console.type_text("aB")?;
    probe.hears(&[
        (key::A, true),
        (key::A, false),
        (key::SHIFT, true),
        (key::B, true),
        (key::SHIFT, false),
        (key::B, false),
    ])?;

    // The pointer, exactly; a click; the wheel.
    let axis = |pixel: usize, pixels: usize| ((pixel as f64 + 0.5) / pixels as f64 * 32767.0).round() as i32;
    console.click(700, TOOLBAR + 333)?;
    probe.hears(&[(key::BUTTON_LEFT, true), (key::BUTTON_LEFT, false)])?;
    let all = events(&probe.log()?);
    let last = |code| all.iter().rfind(|event| event.0 == 3 && event.1 == code).map(|event| event.2);
    assert_eq!((last(0), last(1)), (Some(axis(700, 1000)), Some(axis(333, 700))));
    console.wheel(true)?;
    console.wheel(false)?;
    let wheel = |log: &str| -> Vec<i32> {
        events(log).iter().filter(|event| event.0 == 2 && event.1 == 8).map(|event| event.2).collect()
    };
    desktop.until("the wheel in the guest", || Ok((wheel(&probe.log()?).len() >= 2).then_some(())))?;
    assert_eq!(wheel(&probe.log()?), [1, -1]);
    console.screenshot("2-input")?;

    // A key that is down when the window loses the keyboard is let go, once.
    console.hold("x", true)?;
    probe.hears(&[(key::X, true)])?;
    other.focus()?;
    probe.hears(&[(key::X, false)])?;
    other.hold("x", false)?;
    console.focus()?;

    // Ctrl+Alt+Del is the host key and Del. The host key itself is not the guest's.
    console.host("Delete")?;
    let (down, up) = ([key::CTRL, key::ALT, key::DELETE], [key::DELETE, key::ALT, key::CTRL]);
    probe.hears(&[down.map(|key| (key, true)), up.map(|key| (key, false))].concat())?;

    // A screenshot is the guest's picture, in the person's folder for pictures.
    console.host("e")?;
    let pictures = desktop.home().join("Pictures");
    let shot = desktop.until("the screenshot", || {
        let mut files = fs::read_dir(&pictures).into_iter().flatten().flatten();
        Ok(files.next().and_then(|file| Image::read(&file.path()).ok()))
    })?;
    assert_eq!((shot.width, shot.height), (1000, 700));

    // Over the whole screen and back: the guest follows, and has the keys.
    console.host("f")?;
    probe.says("probe: demo 1280x960 on virtio-gpu")?;
    console.screenshot("3-full-screen")?;
    console.keys(&["a"])?;
    probe.hears(&[(key::A, true), (key::A, false)])?;
    console.host("f")?;
    desktop.until("the window's old size", || Ok((console.size()? == (1000, 700 + BARS)).then_some(())))?;
    desktop.until("the guest's old size", || {
        let log = probe.log()?;
        let last = log.lines().rfind(|line| line.contains("probe: demo "));
        Ok(last.is_some_and(|line| line.contains("1000x700")).then_some(()))
    })?;

    // In a dialog the keys are the dialog's.
    console.close()?;
    console.control("Cancel")?;
    assert!(!console.shows("Keep running")?, "a machine that nobody keeps cannot go on without its window");
    console.screenshot("4-closing")?;
    console.type_text("x")?;
    console.keys(&["Escape"])?;
    desktop.until("the dialog's end", || Ok((!console.shows("Cancel")?).then_some(())))?;
    console.keys(&["Escape"])?;
    // The Escape that closed the dialog was not the guest's.
    probe.hears(&[(key::ESC, true), (key::ESC, false)])?;
    console.close()?;
    console.press("Power off")?;
    desktop.until("the window's end", || Ok((!console.is_open()?).then_some(())))
}

#[test]
fn a_guest_without_a_tablet_has_the_pointer_from_a_click_to_the_host_key() -> Result<()> {
    let test = "a_guest_without_a_tablet_has_the_pointer_from_a_click_to_the_host_key";
    let Some(mut desktop) = desktop(test, "windows-capture")? else { return Ok(()) };
    let kernel = desktop.home().join("probe.elf");
    fs::write(&kernel, orangery_assets::PROBE_ELF).context("could not write the probe")?;
    let mut program = desktop.command(orangery()?);
    program.arg("boot").arg("--kernel").arg(&kernel);
    program.args(["--cmdline", "test=ps2-echo ps2echo then=idle", "--memory", "128"]);
    desktop.launch("probe", program)?;
    let probe = Probe { desktop: &desktop, log: desktop.folder().join("probe.log"), heard: 0 };
    let console = desktop.window(".+ Orangery$")?;
    probe.says("probe: ps2 echo ready")?;
    console.focus()?;
    console.control("Click to capture")?;
    // Packets of the mouse: three bytes, of which the first has the buttons, the next two the movement.
    let packets = |log: &str| -> Vec<[i32; 3]> {
        let byte = |line: &str| i32::from_str_radix(line.trim_end().strip_prefix("ps2 mouse ")?, 16).ok();
        let bytes: Vec<i32> = log.lines().filter_map(byte).collect();
        let signed = |value: i32, negative: bool| if negative { value - 256 } else { value };
        let packet = |p: &[i32]| [p[0] & 7, signed(p[1], p[0] & 0x10 != 0), signed(p[2], p[0] & 0x20 != 0)];
        bytes.chunks_exact(3).map(packet).collect()
    };
    let moved = |log: &str| packets(log).iter().fold((0, 0), |sum, p| (sum.0 + p[1], sum.1 - p[2]));

    // Without a capture the guest gets nothing; the click that captures is not the guest's.
    console.point(200, 200)?;
    console.point(260, 230)?;
    console.click(300, 250)?;
    console.control("Captured")?;
    console.screenshot("1-captured")?;
    assert_eq!(packets(&probe.log()?), Vec::<[i32; 3]>::new());
    console.nudge(30, -20)?;
    desktop.until("the movement", || Ok((moved(&probe.log()?) == (30, -20)).then_some(())))?;
    // Farther than the window reaches.
    for _ in 0..20 {
        console.nudge(100, 10)?;
    }
    desktop.until("the way beyond the edge", || Ok((moved(&probe.log()?) == (2030, 180)).then_some(())))?;
    console.press_button()?;
    desktop.until("the button", || {
        let buttons: Vec<i32> = packets(&probe.log()?).iter().map(|packet| packet[0]).collect();
        Ok((buttons.ends_with(&[1, 0])).then_some(()))
    })?;

    // The host key gives the pointer back.
    console.keys(&[HOST_KEY])?;
    console.control("Click to capture")?;
    let before = packets(&probe.log()?).len();
    console.point(200, 200)?;
    console.point(400, 300)?;
    console.keys(&["a"])?;
    // Keys are the guest's as long as the window has the keyboard; set 1: 1e goes down, 9e up.
    probe.says("ps2 keyboard 9e")?;
    assert_eq!(packets(&probe.log()?).len(), before);
    console.keys(&["Escape"])?;
    probe.says("test ps2-echo: ok")?;
    console.close()?;
    console.press("Power off")?;
    desktop.until("the window's end", || Ok((!console.is_open()?).then_some(())))
}

#[test]
fn the_demo_moves_and_shows_what_is_typed() -> Result<()> {
    let Some(mut desktop) = desktop("the_demo_moves_and_shows_what_is_typed", "windows-demo")? else {
        return Ok(());
    };
    let mut program = desktop.command(orangery()?);
    program.arg("demo");
    desktop.launch("demo", program)?;
    let probe = Probe { desktop: &desktop, log: desktop.folder().join("demo.log"), heard: 0 };
    let console = desktop.window("Demo .+ Orangery$")?;
    console.focus()?;
    console.resize(1152, 720 + BARS)?;
    probe.says("probe: demo 1152x720 on virtio-gpu")?;
    console.control("1152 × 720")?;
    if let Some(line) = probe.log()?.lines().find(|line| line.contains(": FAIL")) {
        bail!("the demo's own test: {line}");
    }
    // The picture moves, the panel of what is typed does not.
    let panel = |image: &Image| image.part(20, TOOLBAR + 570, 400, 120);
    let mut last = console.screenshot("1-demo")?;
    desktop.until("a moving picture", || {
        let before = std::mem::replace(&mut last, console.screenshot("1-demo")?);
        let drawn = last.colours(0..last.width, TOOLBAR..last.height - TOOLBAR) > 100;
        Ok((drawn && last.differences(&before) > 0 && panel(&last) == panel(&before)).then_some(()))
    })?;
    console.type_text("Hello")?;
    desktop.until("the typed text", || {
        let image = console.screenshot("2-typed")?;
        Ok((panel(&image).differences(&panel(&last)) > 100).then_some(()))
    })?;
    console.close()?;
    console.press("Power off")?;
    desktop.until("the window's end", || Ok((!desktop.is_busy()).then_some(())))
}

/// Waits for the row of a snapshot, by its name; what it is called.
fn row(desktop: &Desktop, manager: &Window<'_>, name: &str) -> Result<String> {
    let start = format!("{name}, taken ");
    desktop.until(&format!("the row of the snapshot '{name}'"), || {
        Ok(manager.controls()?.into_iter().map(|control| control.name).find(|name| name.starts_with(&start)))
    })
}

#[test]
fn snapshots_of_a_running_machine_are_taken_restored_and_deleted_by_hand() -> Result<()> {
    let test = "snapshots_of_a_running_machine_are_taken_restored_and_deleted_by_hand";
    let Some(mut desktop) = desktop(test, "windows-snapshots")? else { return Ok(()) };
    let kernel = desktop.home().join("probe.elf");
    fs::write(&kernel, orangery_assets::PROBE_ELF).context("could not write the probe")?;
    let program = desktop.command(orangery()?);
    desktop.launch("manager", program)?;
    let machine = Machine { desktop: &desktop, name: "lab", font: Font::vga()? };
    let kernel = kernel.to_str().context("the home folder's path is no text")?;
    let create = ["create", "lab", "--kernel", kernel, "--cmdline", "demo", "--memory", "96", "--new-disk", "16M"];
    machine.orangery(&create)?;
    let snapshots = || -> Result<Vec<serde_json::Value>> {
        Ok(serde_json::from_str(&machine.orangery(&["snapshot", "list", "lab", "--json"])?)?)
    };
    let state = || -> Result<serde_json::Value> {
        Ok(serde_json::from_str::<serde_json::Value>(&machine.orangery(&["show", "lab", "--json"])?)?["state"].take())
    };
    let manager = desktop.window("^Orangery$")?;
    manager.resize(1200, 800)?;

    // Of a machine that is off, with the mouse.
    manager.control("lab, stopped")?;
    manager.press("Snapshots")?;
    manager.control("No snapshots yet")?;
    manager.screenshot("1-empty")?;
    manager.press("Take Snapshot…")?;
    desktop.until("the keyboard in the name", || {
        let name = manager.controls()?.into_iter().find(|control| control.name == "Name" && control.focused);
        Ok(name.map(drop))
    })?;
    manager.keys(&["ctrl+a"])?;
    manager.type_text("Empty disk")?;
    manager.screenshot("2-take")?;
    manager.press("Take Snapshot")?;
    row(&desktop, &manager, "Empty disk")?;

    // Of the same one while it runs: from the manager, from its own window and from a terminal.
    manager.press("Start")?;
    let console = desktop.window("lab .+ Orangery$")?;
    console.control("Running")?;
    manager.control("You are here, running")?;
    manager.focus()?;
    manager.keys(&["ctrl+t"])?;
    manager.control("Take a snapshot of lab")?;
    manager.keys(&["ctrl+a"])?;
    manager.type_text("Running")?;
    manager.keys(&["Return"])?;
    row(&desktop, &manager, "Running")?;
    console.focus()?;
    console.host("t")?;
    console.control("Take a snapshot")?;
    console.keys(&["ctrl+a"])?;
    console.type_text("From its window")?;
    console.screenshot("3-console")?;
    console.keys(&["Return"])?;
    row(&desktop, &manager, "From its window")?;
    machine.orangery(&["snapshot", "take", "lab", "By hand", "--note", "from a terminal"])?;
    let by_hand = row(&desktop, &manager, "By hand")?;
    manager.focus()?;
    manager.press(&by_hand)?;
    manager.control("from a terminal")?;
    manager.screenshot("4-tree")?;
    let taken = snapshots()?;
    let column = |name: &str| taken.iter().map(|one| one[name].clone()).collect::<Vec<_>>();
    assert_eq!(column("name"), ["Empty disk", "Running", "From its window", "By hand"]);
    assert_eq!(column("running"), [false, true, true, true]);
    assert_eq!(column("parent")[1..], column("id")[..3]);

    // Another that goes on from this moment, with a window of its own.
    console.focus()?;
    console.host("k")?;
    let fork = Machine { desktop: &desktop, name: "lab 1", font: Font::vga()? };
    let forked = desktop.window("lab 1 .+ Orangery$")?;
    forked.control("Running")?;
    fork.orangery(&["stop", fork.name, "--force"])?;
    desktop.until("the end of the fork's window", || Ok((!forked.is_open()?).then_some(())))?;
    manager.control("lab 1, stopped")?;
    manager.focus()?;

    // Back to where it was off. It is stopped for that, and what it was doing is kept first.
    manager.press(&row(&desktop, &manager, "Empty disk")?)?;
    manager.press("Restore…")?;
    manager.control("lab is running")?;
    manager.screenshot("5-restore")?;
    manager.press("Start it afterwards")?;
    manager.press("Power off and restore")?;
    desktop.until("the console's end", || Ok((!console.is_open()?).then_some(())))?;
    row(&desktop, &manager, "Before restoring Empty disk")?;
    manager.control("You are here, stopped")?;
    manager.screenshot("6-branched")?;
    assert_eq!(state()?, "stopped");
    let taken = snapshots()?;
    assert!(taken[0]["present"] == true && taken[4]["name"] == "Before restoring Empty disk", "{taken:?}");

    // Forward again to the moment that was kept: it goes on from there.
    manager.press(&row(&desktop, &manager, "Before restoring Empty disk")?)?;
    manager.press("Restore…")?;
    manager.press("Take a snapshot of the present first")?;
    manager.press("Start it afterwards")?;
    manager.press("Restore")?;
    let console = desktop.window("lab .+ Orangery$")?;
    console.control("Running")?;
    manager.control("You are here, running")?;

    // Another name, and away with all of them, while it runs. The machine's window lies over the manager's.
    manager.focus()?;
    manager.press(&row(&desktop, &manager, "By hand")?)?;
    manager.press("Edit…")?;
    manager.control("Edit “By hand”")?;
    manager.keys(&["ctrl+a"])?;
    manager.type_text("Renamed")?;
    manager.press("Save")?;
    row(&desktop, &manager, "Renamed")?;
    // The key means what was clicked, and not the machine.
    let renamed = row(&desktop, &manager, "Renamed")?;
    manager.press(&renamed)?;
    desktop.until("the keyboard in the row", || Ok(manager.control(&renamed)?.focused.then_some(())))?;
    manager.keys(&["Delete"])?;
    manager.control("Delete “Renamed”?")?;
    manager.keys(&["Escape"])?;
    desktop.until("the dialog's end", || Ok((!manager.shows("Delete “Renamed”?")?).then_some(())))?;

    // A machine that goes on from there when it is started, and shares what both have.
    manager.press("Clone…: Renamed")?;
    manager.control("Clone “Renamed” of lab")?;
    manager.press("Start it")?;
    manager.press("Clone")?;
    manager.control("lab 2, suspended")?;
    manager.screenshot("7-cloned")?;
    for name in ["Running", "From its window", "Renamed", "Before restoring Empty disk", "Empty disk"] {
        manager.press(&row(&desktop, &manager, name)?)?;
        manager.press("Delete…")?;
        manager.control(&format!("Delete “{name}”?"))?;
        manager.press("Delete")?;
        desktop.until(&format!("the end of '{name}'"), || {
            Ok(snapshots()?.iter().all(|one| one["name"] != name).then_some(()))
        })?;
        // The next is deleted when the merge is over.
        desktop.until("the end of the job", || {
            Ok((!manager.controls()?.iter().any(|control| control.name.starts_with("Cancel: "))).then_some(()))
        })?;
    }
    manager.control("No snapshots yet")?;
    manager.press("Log")?;
    manager.control("jobs.log")?;
    manager.screenshot("8-log")?;
    assert_eq!(state()?, "running");

    // Back along the timeline, from the machine's own window: another process goes on from there.
    console.focus()?;
    console.host("Left")?;
    console.press("Keep a timeline")?;
    let points = || -> Result<usize> {
        let list: Vec<serde_json::Value> =
            serde_json::from_str(&machine.orangery(&["timeline", "list", "lab", "--json"])?)?;
        Ok(list.len())
    };
    desktop.until("a checkpoint", || Ok((points()? == 1).then_some(())))?;
    console.host("Left")?;
    console.control("Go back")?;
    console.screenshot("9-timeline")?;
    console.press("Go back")?;
    desktop.until("the console's end", || Ok((!console.is_open()?).then_some(())))?;
    let console = desktop.window("lab .+ Orangery$")?;
    console.control("Running")?;
    assert!(points()? >= 2, "what it was before it went back is not on the timeline");
    Ok(())
}

#[test]
fn the_serial_port_is_a_terminal_in_a_tab_of_the_console() -> Result<()> {
    let test = "the_serial_port_is_a_terminal_in_a_tab_of_the_console";
    let Some(mut desktop) = desktop(test, "windows-serial")? else { return Ok(()) };
    let mut script = Script::default();
    let greeting = "\x1b[2J\x1b[H\x1b[1;33mOrangery\x1b[m \x1b[38;5;208mserial\x1b[m \x1b[38;2;90;200;250mport\x1b[m \
        \x1b[7minverse\x1b[m \x1b[1mbold\x1b[m \x1b[4munderlined\x1b[m\r\n\x1b(0lqqqqqqk\x1b(B\r\nType: ";
    script.step(&[say(greeting), vec![Op::Echo], say("\r\nBracketed: \x1b[?2004h"), vec![Op::Echo]].concat())?;
    let long: String = (1..=200).map(|n| format!("\r\nline {n}")).collect();
    script.step(&say(&long))?;
    script.step(&say("\x1b[?1049h\x1b[H\x1b[2Jalternate\x1b[?1h\x1b[?25l"))?;
    script.step(&say("\x1b[?1049lback"))?;
    let disk = desktop.home().join("script.img");
    fs::write(&disk, script.disk()?).context("could not write the disk")?;
    let mut program = desktop.command(orangery()?);
    program.args(["boot", "--firmware", "bios", "--memory", "64", "--cpus", "1", "--disk"]).arg(&disk);
    desktop.launch("machine", program)?;
    let console = desktop.window(".+ Orangery$")?;
    console.focus()?;
    console.resize(1000, 700 + BARS)?;
    console.press("Serial")?;
    let shows = |what: &str, wanted: &dyn Fn(&str) -> bool| {
        desktop.within(BOOT, what, || Ok(Some(console.text("Serial terminal")?).filter(|text| wanted(text))))
    };
    let text = shows("the guest's prompt", &|text| text.trim_end().ends_with("Type:"))?;
    assert!(text.contains("Orangery serial port inverse bold underlined\n┌──────┐\n"), "{text:?}");
    assert!(console.control("Serial terminal")?.focused, "the terminal has no keyboard");
    console.screenshot("1-greeting")?;

    // Keys arrive as a terminal sends them, and are the serial port's alone.
    let sent = |keys: &[&str], bytes: &str| -> Result<()> {
        let before = console.text("Serial terminal")?.trim_end().to_owned();
        console.keys(keys)?;
        let wanted = format!("{before}{bytes}").replace("Type:", "Type: ").replace("Type:  ", "Type: ");
        shows(&format!("{keys:?} as {bytes}"), &|text| text.trim_end() == wanted).map(drop)
    };
    sent(&["a"], "61")?;
    sent(&["shift+b", "ctrl+c", "alt+x"], "42031b78")?;
    sent(&["Up", "F1", "F5"], "1b5b411b4f501b5b31357e")?;
    sent(&["Return", "BackSpace", "Tab", "Escape"], "0d7f091b")?;
    // What the terminal is sent is seen by everyone at the port: the program's own standard output shows it too.
    let log =
        || -> Result<String> { Ok(String::from_utf8_lossy(&fs::read(desktop.folder().join("machine.log"))?).into()) };
    desktop.until("the terminal that the machine was started on", || Ok(log()?.contains("61420").then_some(())))?;

    // A word is selected with two clicks, copied and pasted, in brackets where the guest asks for them.
    console.keys(&["q"])?;
    shows("the second echo", &|text| text.trim_end().ends_with("Bracketed:"))?;
    let terminal = console.control("Serial terminal")?;
    let (columns, lines) = size(&console)?;
    let cell = (terminal.width as usize / columns, terminal.height as usize / lines);
    console.double_click(terminal.left as usize + cell.0 * 2, terminal.top as usize + cell.1 / 2)?;
    console.keys(&["ctrl+shift+c", "ctrl+shift+v"])?;
    let pasted = "1b5b3230307e4f72616e676572791b5b3230317e";
    shows("what was pasted", &|text| text.trim_end().replace('\n', "").ends_with(pasted))?;
    console.screenshot("2-typed")?;
    console.keys(&["q", "x"])?;

    // What left the screen is scrolled back to, with the wheel and with the keys.
    shows("the last line", &|text| text.contains("line 200"))?;
    console.point(500, 300)?;
    console.wheel(true)?;
    shows("a notch back", &|text| !text.contains("line 200") && text.contains("line 197"))?;
    console.keys(&["shift+Home"])?;
    shows("the first line", &|text| text.contains("┌──────┐"))?;
    console.screenshot("3-scrolled-back")?;
    console.keys(&["x"])?;
    shows("the other screen", &|text| text.starts_with("alternate") && !text.contains("line"))?;
    // There the wheel is the cursor keys', of which the first ends the step.
    console.wheel(true)?;
    shows("the first screen again", &|text| text.contains("line 200") && text.contains("back"))?;

    // Another size, and the guest's screen again.
    console.resize(640, 500)?;
    desktop.until("a small terminal in a small window", || Ok((size(&console)?.0 < 100).then_some(())))?;
    let (columns, lines) = size(&console)?;
    assert!(columns >= 80 && lines >= 25, "{columns} × {lines}");
    console.screenshot("4-small")?;
    console.host("1")?;
    desktop.until("the guest's screen", || Ok((!console.shows("Serial terminal")?).then_some(())))?;
    console.host("2")?;
    console.control("Serial terminal")?;
    console.close()?;
    console.press("Power off")?;
    desktop.until("the window's end", || Ok((!desktop.is_busy()).then_some(())))
}

/// The terminal's size, as the status bar tells it.
fn size(console: &Window<'_>) -> Result<(usize, usize)> {
    let controls = console.controls()?;
    let text = controls.iter().find_map(|control| control.name.strip_suffix(" characters"));
    let (columns, lines) = text.and_then(|text| text.split_once(" × ")).context("the status bar tells no size")?;
    Ok((columns.parse()?, lines.parse()?))
}
