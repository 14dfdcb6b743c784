//! A virtual machine on the host of the tests, driven through the command line as a person would.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::nested::{Host, Output, Step, last_lines};
use crate::screen::{Font, Image};

/// How long a machine of a test may run.
const LIFE: Duration = Duration::from_secs(300);
/// How long one command may take.
const COMMAND: Duration = Duration::from_secs(120);
/// How often its screen is looked at.
const LOOK: Duration = Duration::from_millis(200);

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
    life: Duration,
    picture: Option<PathBuf>,
}

impl<'h> Machine<'h> {
    /// Creates a machine with these flags of `orangery create`, in the shell's syntax, and starts it.
    pub fn start(host: &'h Host, name: &str, flags: &str) -> Result<Self> {
        Self::start_for(host, name, flags, LIFE)
    }

    /// The same, for a machine that may run for `life`.
    pub fn start_for(host: &'h Host, name: &str, flags: &str, life: Duration) -> Result<Self> {
        Self::create(host, name, flags)?;
        Self::run(host, name, life, "")
    }

    /// Creates a machine with these flags of `orangery create`, in the shell's syntax.
    pub fn create(host: &Host, name: &str, flags: &str) -> Result<()> {
        let create = format!("{}orangery create {name} {flags}", preamble(host)?);
        host.run("create", &create, COMMAND)?.success().map(drop)
    }

    /// Starts one that was created before, with more in its environment: assignments, in the shell's syntax.
    pub fn start_with(host: &'h Host, name: &str, life: Duration, environment: &str) -> Result<Self> {
        Self::run(host, name, life, environment)
    }

    /// Starts a machine that was created before and has stopped.
    pub fn restart(host: &'h Host, name: &str) -> Result<Self> {
        Self::run(host, name, LIFE, "")
    }

    fn run(host: &'h Host, name: &str, life: Duration, environment: &str) -> Result<Self> {
        let preamble = preamble(host)?;
        let script = format!("{preamble}{environment} exec orangery --json run {name} --headless");
        let mut run = host.spawn("run", &script, life)?;
        run.wait_for("stdout", "\"started\"")?;
        let serial = host.spawn("serial", &format!("{preamble}exec orangery console {name}"), life)?;
        Ok(Self { host, name: name.to_owned(), run, serial, life, picture: None })
    }

    /// Runs a verb of `orangery` on it: the words before its name and those after, in the shell's syntax.
    pub fn verb(&self, verb: &str, arguments: &str) -> Result<Output> {
        Self::verb_of(self.host, verb, &self.name, arguments)
    }

    /// The same for a machine that need not run.
    pub fn verb_of(host: &Host, verb: &str, name: &str, arguments: &str) -> Result<Output> {
        let line = format!("{}exec orangery {verb} {name} {arguments}", preamble(host)?);
        host.run(verb, &line, COMMAND)
    }

    /// Waits until the guest's serial port has said the text; all that it said so far.
    ///
    /// # Errors
    /// It fell silent for good, or a Linux kernel there gave up.
    pub fn wait_for_serial(&mut self, text: &str) -> Result<String> {
        self.wait_for_serial_times(text, 1)
    }

    /// Waits until the guest's serial port has said the text so many times; all that it said so far.
    ///
    /// # Errors
    /// As of [`Machine::wait_for_serial`].
    pub fn wait_for_serial_times(&mut self, text: &str, times: usize) -> Result<String> {
        Ok(self.listen(text, times, None)?.unwrap_or_default())
    }

    /// Whether the guest's serial port says the text, or has said it, before this time is over.
    ///
    /// # Errors
    /// As of [`Machine::wait_for_serial`].
    pub fn serial_says_within(&mut self, text: &str, time: Duration) -> Result<bool> {
        Ok(self.listen(text, 1, Some(Instant::now() + time))?.is_some())
    }

    fn listen(&mut self, text: &str, times: usize, until: Option<Instant>) -> Result<Option<String>> {
        loop {
            // Asked before the text is read, so that what was said last still counts.
            let ended = self.serial.ended()?.is_some();
            let said = self.serial.stdout();
            if said.matches(text).count() >= times {
                return Ok(Some(said));
            }
            let gave_up = said.contains("end Kernel panic - not syncing");
            ensure!(!gave_up, "the guest's kernel gave up before '{text}' came; it said:\n{}", last_lines(&said));
            ensure!(!ended, "the serial port fell silent before '{text}' came; it said:\n{}", last_lines(&said));
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Looks at its screen until the text there is as wanted; the text. The last picture stays in the script's folder.
    pub fn wait_for_screen(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let font = Font::vga()?;
        let mut text = String::new();
        let looked = self.wait_for_picture(what, |picture| {
            text = font.read(picture);
            wanted(&text)
        });
        looked.with_context(|| format!("the last text was:\n{text}"))?;
        Ok(text)
    }

    /// Looks at its screen until the picture there is as wanted. The last one stays in the script's folder.
    pub fn wait_for_picture(&mut self, what: &str, mut wanted: impl FnMut(&Image) -> bool) -> Result<()> {
        // A picture appears whole, under its name; the guest may be between two modes and have none.
        let script = format!(
            "{}until [[ -e enough ]]; do orangery screenshot {} new.png && mv new.png screen.png; sleep 0.2; done",
            preamble(self.host)?,
            self.name
        );
        let mut look = self.host.spawn("screen", &script, self.life)?;
        let picture = look.folder().join("screen.png");
        self.picture = Some(picture.clone());
        while self.run.ended()?.is_none() && look.ended()?.is_none() {
            if picture.exists() && wanted(&Image::read(&picture)?) {
                return std::fs::write(look.folder().join("enough"), "").context("could not end the script");
            }
            std::thread::sleep(LOOK);
        }
        bail!("{what} never came on the screen, see {}", picture.display())
    }

    /// Takes a picture of its screen.
    pub fn photograph(&self) -> Result<PathBuf> {
        Ok(self.verb("screenshot", "screen.png")?.success()?.folder.join("screen.png"))
    }

    /// The last picture that was looked at.
    pub fn last_picture(&self) -> Option<PathBuf> {
        self.picture.clone().filter(|path| path.exists())
    }

    /// Waits until it has switched itself off.
    pub fn wait_until_off(&mut self) -> Result<()> {
        let code = loop {
            match self.run.ended()? {
                Some(code) => break code,
                None => std::thread::sleep(LOOK),
            }
        };
        ensure!(code == 0, "the machine's process ended with {code}, see {}", self.run.folder().display());
        Ok(())
    }

    /// Pulls its plug, if it still runs, and waits for its end.
    pub fn end(mut self) -> Result<()> {
        if self.run.ended()?.is_none() {
            self.verb("stop", "--force")?;
        }
        self.run.wait().map(drop)
    }

    /// Waits until it has stopped by itself.
    pub fn wait(self) -> Result<Output> {
        self.run.wait()
    }
}
