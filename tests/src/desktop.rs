//! A virtual desktop to drive windows in: Xvfb with a window manager, xdotool for the hands, screenshots for the eyes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::Process;
use crate::reader::{Control, Reader};
use crate::screen::Image;

/// How long a window, or a picture in one, may take to appear on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(100);
/// How many lines of a program's log are told when a test gives up.
const LAST_WORDS: usize = 15;

/// The console's host key, the right Ctrl key, by its X keycode (evdev's 97 and 8): by its name xdotool would press the left
/// Ctrl key as well.
pub const HOST_KEY: &str = "105";

/// A display of its own, with nothing on it but what a test starts there. All ends when it is dropped.
#[derive(Debug)]
pub struct Desktop {
    // Fields drop in order: the programs, the window manager, the display.
    programs: Vec<Program>,
    reader: Option<Reader>,
    manager: Process,
    display: Process,
    name: String,
    folder: PathBuf,
    scratch: TempDir,
}

#[derive(Debug)]
struct Program {
    name: String,
    process: Process,
}

impl Desktop {
    /// Starts a desktop of this size. Logs and screenshots go to `artifacts/NAME`.
    pub fn start(name: &str, width: u32, height: u32) -> Result<Self> {
        let folder = crate::artifacts()?.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
        let scratch = tempfile::tempdir().context("could not make a folder for the desktop")?;
        for part in ["home", "run"] {
            let part = scratch.path().join(part);
            fs::DirBuilder::new().mode(0o700).create(&part).context("could not make a folder for the desktop")?;
        }
        let mut server = Command::new("Xvfb");
        server
            .args(["-displayfd", "1", "-nolisten", "tcp", "-noreset", "-screen", "0", &format!("{width}x{height}x24")])
            // A key whose release is late on a busy computer must not repeat.
            .arg("-r")
            .arg("-fbdir")
            .arg(scratch.path())
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(File::create(folder.join("xvfb.log")).context("could not make a log")?);
        let server = Process::start(server)?;
        // The server chooses a free number and prints it when it is ready.
        let mut number = String::new();
        BufReader::new(reader).read_line(&mut number).context("could not read Xvfb's display number")?;
        ensure!(!number.trim().is_empty(), "Xvfb did not start: see {}", folder.join("xvfb.log").display());
        let display = format!(":{}", number.trim());
        let mut manager = Command::new("openbox");
        let log = File::create(folder.join("openbox.log")).context("could not make a log")?;
        let ready = scratch.path().join("ready");
        manager.arg("--sm-disable").arg("--startup").arg(format!("touch '{}'", ready.display()));
        manager.env("DISPLAY", &display).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        at_home(&mut manager, &scratch);
        let manager = Process::start(manager)?;
        let desktop =
            Self { programs: Vec::new(), reader: None, manager, display: server, name: display, folder, scratch };
        // Openbox claims the display, then reads its theme and fonts, and only then listens. A window that comes in
        // between is reported to it before it listens, and it does not look at that report until the next one comes,
        // which may be never. So its own command at the end of its start is waited for, not its claim.
        desktop.until("the window manager", || Ok(ready.exists().then_some(())))?;
        Ok(desktop)
    }

    /// Starts a screen reader; programs that are launched from now on tell it their controls.
    pub fn listen(&mut self) -> Result<()> {
        self.reader = Some(Reader::start(self.scratch.path())?);
        Ok(())
    }

    /// The display's name, for `DISPLAY`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where screenshots and logs go.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// The file that always holds the screen's pixels, in X's dump format (xwd): the pixels, 32 bits each, are its end.
    pub fn screen(&self) -> PathBuf {
        self.scratch.path().join("Xvfb_screen0")
    }

    /// The home folder of the programs that are launched: empty at first, and gone with the desktop.
    pub fn home(&self) -> PathBuf {
        self.scratch.path().join("home")
    }

    /// A program that belongs to the desktop, as one started from its menu does: with its display, and with folders of
    /// its own instead of those of the person who runs the tests.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        at_home(&mut command, &self.scratch);
        command.env("DISPLAY", &self.name).env_remove("WAYLAND_DISPLAY").env_remove("WAYLAND_SOCKET");
        match &self.reader {
            Some(reader) => command.env("DBUS_SESSION_BUS_ADDRESS", reader.address()),
            None => command.env_remove("DBUS_SESSION_BUS_ADDRESS"),
        };
        command.stdin(Stdio::null());
        command
    }

    /// Starts a program made with [`Desktop::command`]; what it prints goes to `NAME.log` in the desktop's folder.
    pub fn launch(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = File::create(self.log(name)).context("could not make a log")?;
        let errors = log.try_clone().context("could not share a log")?;
        command.stdout(log).stderr(errors);
        self.programs.push(Program { name: name.to_owned(), process: Process::start(command)? });
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// Whether a program that was launched still runs.
    pub fn is_busy(&self) -> bool {
        self.programs.iter().any(|program| program.process.is_running())
    }

    /// Waits for a visible window whose title contains the text.
    pub fn window(&self, title: &str) -> Result<Window<'_>> {
        self.until(&format!("a window '{title}'"), || {
            // xdotool fails when there is none yet.
            let found = self.output("xdotool", &["search", "--onlyvisible", "--name", title])?;
            let found = String::from_utf8_lossy(&found.stdout).lines().next().map(str::to_owned);
            Ok(found.map(|id| Window { desktop: self, id }))
        })
    }

    /// Whether a visible window's title contains the text.
    pub fn has_window(&self, title: &str) -> Result<bool> {
        Ok(self.output("xdotool", &["search", "--onlyvisible", "--name", title])?.status.success())
    }

    /// Takes a picture of the whole desktop and keeps it as `NAME.png`.
    pub fn screenshot(&self, name: &str) -> Result<Image> {
        self.grab("root", name)
    }

    /// Waits until `look` finds something. `what` it is, is told when it never comes.
    pub fn until<T>(&self, what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        self.within(PATIENCE, what, look)
    }

    /// [`Desktop::until`] for what may take longer.
    pub fn within<T>(&self, patience: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let _ = self.screenshot("gave-up");
                let picture = self.folder.join("gave-up.png");
                bail!("{what} never came: see {}\n{}", picture.display(), self.situation());
            }
            thread::sleep(POLL);
        }
    }

    /// What there is on the desktop, for a person who looks for the reason why something never came.
    fn situation(&self) -> String {
        let runs = |process: &Process| if process.is_running() { "runs" } else { "has ended" };
        let mut text = format!("the X server {}, openbox {}\n", runs(&self.display), runs(&self.manager));
        let mut logs = vec!["xvfb".to_owned(), "openbox".to_owned()];
        for program in &self.programs {
            text += &format!("{} (process {}) {}\n", program.name, program.process.id, runs(&program.process));
            logs.push(program.name.clone());
        }
        let tree = self.tool("xwininfo", &["-root", "-tree"]).unwrap_or_else(|error| format!("{error:#}"));
        let visible = self.output("xdotool", &["search", "--onlyvisible", "--name", "."]);
        let visible = visible.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let visible: Vec<&str> = visible.lines().collect();
        // xwininfo counts windows in hexadecimal, xdotool in decimal.
        let number = |line: &str| u64::from_str_radix(line.trim().split(' ').next()?.strip_prefix("0x")?, 16).ok();
        for line in tree.lines().filter(|line| line.contains('"')) {
            let seen = number(line).is_some_and(|number| visible.contains(&number.to_string().as_str()));
            text += &format!("window {}{}\n", line.trim(), if seen { ", visible" } else { ", not visible" });
        }
        for name in logs {
            let log = fs::read_to_string(self.log(&name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LAST_WORDS)..] {
                text += &format!("{name}: {line}\n");
            }
        }
        text
    }

    fn grab(&self, window: &str, name: &str) -> Result<Image> {
        let path = self.folder.join(format!("{name}.png"));
        self.tool("import", &["-silent", "-window", window, &format!("png24:{}", path.display())])?;
        Image::read(&path)
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let output = self.command(program).args(arguments).output();
        output.with_context(|| format!("could not run {program}: run './dev setup' to install it"))
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(program, arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {} failed: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Gives a program the desktop's folders instead of the person's.
fn at_home(command: &mut Command, scratch: &TempDir) {
    for variable in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "ORANGERY_LIBRARY"] {
        command.env_remove(variable);
    }
    command.env("HOME", scratch.path().join("home")).env("XDG_RUNTIME_DIR", scratch.path().join("run"));
}

/// A window on the desktop.
#[derive(Debug)]
pub struct Window<'a> {
    desktop: &'a Desktop,
    id: String,
}

impl Window<'_> {
    /// Its width and height without the frame.
    pub fn size(&self) -> Result<(usize, usize)> {
        let shell = self.desktop.tool("xdotool", &["getwindowgeometry", "--shell", &self.id])?;
        let value = |name: &str| {
            let line = shell.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.and_then(|value| value.parse().ok()).with_context(|| format!("xdotool gave no {name}"))
        };
        Ok((value("WIDTH")?, value("HEIGHT")?))
    }

    /// Gives it another size, without the frame, at the top left of the desktop.
    pub fn resize(&self, width: usize, height: usize) -> Result<()> {
        let (width, height) = (width.to_string(), height.to_string());
        self.desktop.tool("xdotool", &["windowmove", &self.id, "0", "0"])?;
        self.desktop.tool("xdotool", &["windowsize", &self.id, &width, &height]).map(drop)
    }

    /// Its title.
    pub fn title(&self) -> Result<String> {
        Ok(self.desktop.tool("xdotool", &["getwindowname", &self.id])?.trim_end().to_owned())
    }

    /// Whether it is still there and to be seen.
    pub fn is_open(&self) -> Result<bool> {
        let info = self.desktop.output("xwininfo", &["-id", &self.id])?;
        Ok(String::from_utf8_lossy(&info.stdout).contains("IsViewable"))
    }

    /// Gives it the keyboard.
    pub fn focus(&self) -> Result<()> {
        self.desktop.until(&format!("the focus of window {}", self.id), || {
            let active = self.desktop.output("xdotool", &["getactivewindow"])?;
            if String::from_utf8_lossy(&active.stdout).trim() == self.id {
                return Ok(Some(()));
            }
            // Asked again each time: a window manager that is busy may overlook one.
            self.desktop.output("xdotool", &["windowactivate", &self.id]).map(|_| None)
        })
    }

    /// Everything in it that a screen reader knows, from the top down.
    pub fn controls(&self) -> Result<Vec<Control>> {
        let reader = self.desktop.reader.as_ref().context("there is no screen reader on this desktop")?;
        let process = self.desktop.tool("xdotool", &["getwindowpid", &self.id])?;
        reader.controls(process.trim().parse().context("xdotool gave no process")?)
    }

    /// What a screen reader reads in the control of this name; nothing while there is no such control.
    pub fn text(&self, name: &str) -> Result<String> {
        let reader = self.desktop.reader.as_ref().context("there is no screen reader on this desktop")?;
        let process = self.desktop.tool("xdotool", &["getwindowpid", &self.id])?;
        let text = reader.text(process.trim().parse().context("xdotool gave no process")?, name)?;
        Ok(text.unwrap_or_default())
    }

    /// Waits until it shows a control or a text of this name, and that can be used.
    pub fn control(&self, name: &str) -> Result<Control> {
        let mut last = Vec::new();
        let found = self.desktop.until(&format!("'{name}' in the window"), || {
            last = self.controls()?;
            Ok(last.iter().find(|control| control.name == name && control.enabled).cloned())
        });
        found.with_context(|| {
            let names: Vec<String> =
                last.iter().map(|control| format!("{} '{}'", control.role, control.name)).collect();
            format!("the window shows: {}", names.join(", "))
        })
    }

    /// Whether a screen reader knows of a control or text with this name in it.
    pub fn shows(&self, name: &str) -> Result<bool> {
        Ok(self.controls()?.iter().any(|control| control.name == name))
    }

    /// Clicks the middle of the control of this name, once it is there and has come to rest.
    pub fn press(&self, name: &str) -> Result<()> {
        let mut place = self.control(name)?;
        loop {
            let now = self.control(name)?;
            if now == place {
                break;
            }
            place = now;
        }
        let (x, y) = (place.left + place.width / 2, place.top + place.height / 2);
        let (width, height) = self.size()?;
        let within = |at: i32, end: usize| usize::try_from(at).ok().filter(|&at| at < end);
        let (x, y) = within(x, width).zip(within(y, height)).with_context(|| {
            format!("'{name}' at {x}, {y} is outside of its window of {width}×{height}: make the window larger")
        })?;
        self.click(x, y)
    }

    /// Clicks the left button twice at a point of it.
    pub fn double_click(&self, x: usize, y: usize) -> Result<()> {
        self.point(x, y)?;
        self.desktop.tool("xdotool", &["click", "--repeat", "2", "--delay", "60", "1"]).map(drop)
    }

    /// Clicks the left button at a point of it.
    pub fn click(&self, x: usize, y: usize) -> Result<()> {
        self.point(x, y)?;
        self.desktop.tool("xdotool", &["click", "1"]).map(drop)
    }

    /// Moves the pointer to a point of it.
    pub fn point(&self, x: usize, y: usize) -> Result<()> {
        let (x, y) = (x.to_string(), y.to_string());
        // Without --sync, which waits for ever when the pointer is there already.
        self.desktop.tool("xdotool", &["mousemove", "--window", &self.id, &x, &y]).map(drop)
    }

    /// Presses and releases the left button where the pointer is.
    pub fn press_button(&self) -> Result<()> {
        self.desktop.tool("xdotool", &["click", "1"]).map(drop)
    }

    /// Moves the pointer by so many pixels, wherever it is.
    pub fn nudge(&self, right: i32, down: i32) -> Result<()> {
        let (right, down) = (right.to_string(), down.to_string());
        self.desktop.tool("xdotool", &["mousemove_relative", "--", &right, &down]).map(drop)
    }

    /// Turns the wheel by a notch, up or down.
    pub fn wheel(&self, up: bool) -> Result<()> {
        self.desktop.tool("xdotool", &["click", if up { "4" } else { "5" }]).map(drop)
    }

    /// Presses a key and holds it, or lets it go.
    pub fn hold(&self, key: &str, down: bool) -> Result<()> {
        self.desktop.tool("xdotool", &[if down { "keydown" } else { "keyup" }, key]).map(drop)
    }

    /// Types a text into whatever has the keyboard, with real key presses.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.desktop.tool("xdotool", &["type", "--delay", "60", text]).map(drop)
    }

    /// Presses and releases keys or combinations, named as in X: `Return`, `ctrl+alt+Delete`.
    pub fn keys(&self, keys: &[&str]) -> Result<()> {
        let mut words = vec!["key", "--delay", "60"];
        words.extend_from_slice(keys);
        self.desktop.tool("xdotool", &words).map(drop)
    }

    /// Presses a key while the host key is down.
    pub fn host(&self, key: &str) -> Result<()> {
        self.desktop.tool("xdotool", &["keydown", HOST_KEY, "key", "--delay", "60", key, "keyup", HOST_KEY]).map(drop)
    }

    /// Takes a picture of it and keeps it as `NAME.png`.
    pub fn screenshot(&self, name: &str) -> Result<Image> {
        self.desktop.grab(&self.id, name)
    }

    /// Asks it to close, as its frame's button does.
    pub fn close(&self) -> Result<()> {
        // xdotool's windowclose would destroy it, and a key of the window manager's means what has the focus by then.
        self.desktop.tool("wmctrl", &["-i", "-c", &self.id]).map(drop)
    }
}
