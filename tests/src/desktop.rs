//! A virtual desktop to drive windows in: Xvfb with a window manager, xdotool for the hands, screenshots for the eyes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::Process;
use crate::screen::Image;

/// How long a window, or a picture in one, may take to appear on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(100);

/// A display of its own, with nothing on it but what a test starts there. All ends when it is dropped.
#[derive(Debug)]
pub struct Desktop {
    // Fields drop in order: the programs, the window manager, the display.
    programs: Vec<Process>,
    _manager: Process,
    _display: Process,
    name: String,
    folder: PathBuf,
    screen: TempDir,
}

impl Desktop {
    /// Starts a desktop of this size. Logs and screenshots go to `artifacts/NAME`.
    pub fn start(name: &str, width: u32, height: u32) -> Result<Self> {
        let folder = crate::artifacts()?.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        let (reader, writer) = std::io::pipe().context("could not make a pipe")?;
        let screen = tempfile::tempdir().context("could not make a folder for the screen")?;
        let mut server = Command::new("Xvfb");
        server
            .args(["-displayfd", "1", "-nolisten", "tcp", "-noreset", "-screen", "0", &format!("{width}x{height}x24")])
            .arg("-fbdir")
            .arg(screen.path())
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
        manager.arg("--sm-disable").env("DISPLAY", &display).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let manager = Process::start(manager)?;
        let desktop = Self { programs: Vec::new(), _manager: manager, _display: server, name: display, folder, screen };
        // Until the window manager is there, windows would get neither frame nor focus.
        desktop.until("the window manager", || {
            let name = desktop.tool("xprop", &["-root", "_NET_SUPPORTING_WM_CHECK"])?;
            Ok(name.contains("window id").then_some(()))
        })?;
        Ok(desktop)
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
        self.screen.path().join("Xvfb_screen0")
    }

    /// Starts a program on the desktop; what it prints goes to `NAME.log` in the desktop's folder.
    pub fn launch(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = File::create(self.folder.join(format!("{name}.log"))).context("could not make a log")?;
        let errors = log.try_clone().context("could not share a log")?;
        command.env("DISPLAY", &self.name).env_remove("WAYLAND_DISPLAY").env_remove("WAYLAND_SOCKET");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        self.programs.push(Process::start(command)?);
        Ok(())
    }

    /// Whether a program that was launched still runs.
    pub fn is_busy(&self) -> bool {
        self.programs.iter().any(Process::is_running)
    }

    /// Waits for a visible window whose title contains the text.
    pub fn window(&self, title: &str) -> Result<Window<'_>> {
        self.until(&format!("a window '{title}'"), || {
            // xdotool fails when there is none yet.
            let found = self.command("xdotool", &["search", "--onlyvisible", "--name", title])?;
            let found = String::from_utf8_lossy(&found.stdout).lines().next().map(str::to_owned);
            Ok(found.map(|id| Window { desktop: self, id }))
        })
    }

    /// Whether a visible window's title contains the text.
    pub fn has_window(&self, title: &str) -> Result<bool> {
        Ok(self.command("xdotool", &["search", "--onlyvisible", "--name", title])?.status.success())
    }

    /// Takes a picture of the whole desktop and keeps it as `NAME.png`.
    pub fn screenshot(&self, name: &str) -> Result<Image> {
        self.grab("root", name)
    }

    /// Waits until `look` finds something. `what` it is, is told when it never comes.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let _ = self.screenshot("gave-up");
                bail!("{what} never came: see {}", self.folder.join("gave-up.png").display());
            }
            thread::sleep(POLL);
        }
    }

    fn grab(&self, window: &str, name: &str) -> Result<Image> {
        let path = self.folder.join(format!("{name}.png"));
        self.tool("import", &["-silent", "-window", window, &format!("png24:{}", path.display())])?;
        Image::read(&path)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new(program);
        let output = command.args(arguments).env("DISPLAY", &self.name).stdin(Stdio::null()).output();
        output.with_context(|| format!("could not run {program}: run './dev setup' to install it"))
    }

    fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program, arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {} failed: {}", arguments.join(" "), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
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

    /// Gives it the keyboard.
    pub fn focus(&self) -> Result<()> {
        self.desktop.tool("xdotool", &["windowactivate", "--sync", &self.id]).map(drop)
    }

    /// Clicks the left button at a point of it.
    pub fn click(&self, x: usize, y: usize) -> Result<()> {
        self.point(x, y)?;
        self.desktop.tool("xdotool", &["click", "1"]).map(drop)
    }

    /// Moves the pointer to a point of it.
    pub fn point(&self, x: usize, y: usize) -> Result<()> {
        let (x, y) = (x.to_string(), y.to_string());
        self.desktop.tool("xdotool", &["mousemove", "--sync", "--window", &self.id, &x, &y]).map(drop)
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

    /// Takes a picture of it and keeps it as `NAME.png`.
    pub fn screenshot(&self, name: &str) -> Result<Image> {
        self.desktop.grab(&self.id, name)
    }

    /// Asks it to close, as its frame's button does.
    pub fn close(&self) -> Result<()> {
        // xdotool's windowclose would destroy it; this sends the window manager's polite message.
        self.focus()?;
        self.keys(&["alt+F4"])
    }
}
