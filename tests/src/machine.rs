//! A virtual machine on the host of the tests, driven through the command line as a person would.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::nested::{Host, Output, Step};
use crate::screen::{Font, Image};

/// How long a machine of a test may run.
const LIFE: Duration = Duration::from_secs(600);
/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);

/// The beginning of a script that uses `orangery`: this build's program is in the path, and its library of machines is
/// apart from a person's.
pub fn preamble(host: &Host) -> Result<String> {
    let program = crate::orangery()?;
    let folder = program.parent().context("the program is in no folder")?;
    let scratch = host.scratch();
    Ok(format!(
        "export PATH='{}':$PATH SCRATCH='{scratch}' ORANGERY_LIBRARY='{scratch}/machines'\nmkdir -p \"$SCRATCH\"\n",
        folder.display(),
        scratch = scratch.display(),
    ))
}

/// A machine of the library that runs without a window.
#[derive(Debug)]
pub struct Machine<'h> {
    host: &'h Host,
    name: String,
    run: Step,
    serial: Step,
}

impl<'h> Machine<'h> {
    /// Creates a machine with these flags of `orangery create`, in the shell's syntax, and starts it.
    pub fn start(host: &'h Host, name: &str, flags: &str) -> Result<Self> {
        let preamble = preamble(host)?;
        host.run("create", &format!("{preamble}orangery create {name} {flags}"), COMMAND)?.success()?;
        let mut run = host.spawn("run", &format!("{preamble}exec orangery --json run {name} --headless"), LIFE)?;
        run.wait_for("stdout", "\"started\"")?;
        let serial = host.spawn("serial", &format!("{preamble}exec orangery console {name}"), LIFE)?;
        Ok(Self { host, name: name.to_owned(), run, serial })
    }

    /// Runs a verb of `orangery` on it: the words before its name and those after, in the shell's syntax.
    pub fn verb(&self, verb: &str, arguments: &str) -> Result<Output> {
        let line = format!("{}exec orangery {verb} {} {arguments}", preamble(self.host)?, self.name);
        self.host.run(verb, &line, COMMAND)
    }

    /// Waits until the guest's serial port has said the text; all that it said so far.
    pub fn wait_for_serial(&mut self, text: &str) -> Result<String> {
        self.serial.wait_for("stdout", text)
    }

    /// Takes a picture of its screen.
    pub fn screenshot(&self) -> Result<Image> {
        let output = self.verb("screenshot", "screen.png")?.success()?;
        Image::read(&output.folder.join("screen.png"))
    }

    /// Takes pictures of its screen until the text on it is as wanted; the text.
    pub fn wait_for_screen(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let font = Font::vga()?;
        let mut text = String::new();
        while self.run.ended()?.is_none() {
            // The guest may be between two modes.
            let output = self.verb("screenshot", "screen.png")?;
            if output.code == 0 {
                text = font.read(&Image::read(&output.folder.join("screen.png"))?);
            }
            if wanted(&text) {
                return Ok(text);
            }
        }
        anyhow::bail!("{what} never came on the screen, whose last text was:\n{text}")
    }

    /// Waits until it has stopped by itself.
    pub fn wait(self) -> Result<Output> {
        self.run.wait()
    }
}
