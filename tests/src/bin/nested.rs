//! Runs a command in the nested host: `nested COMMAND…`, or a shell there: `nested`.

use std::fs::File;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use orangery_tests::nested::{self, Host};

/// A person's command may take its time.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How often its output is passed on.
const POLL: Duration = Duration::from_millis(50);

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() {
        nested::shell()?;
        return Ok(ExitCode::SUCCESS);
    }
    let folder = std::env::current_dir().context("the current folder is gone")?;
    // One word is a line of shell; several are a command and its arguments.
    let line = match words.as_slice() {
        [line] => line.clone(),
        words => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
    };
    let script = format!("cd {} || exit\n{line}\n", quote(&folder.to_string_lossy()));
    let host = Host::start_nested()?;
    let mut step = host.spawn("command", &script, LIMIT)?;
    let mut stdout = File::open(step.folder().join("stdout")).context("the command's output is missing")?;
    let mut stderr = File::open(step.folder().join("stderr")).context("the command's output is missing")?;
    loop {
        // Asked before the output is read, so that the last words are passed on too.
        let ended = step.ended()?;
        io::copy(&mut stdout, &mut io::stdout()).and_then(|_| io::stdout().flush()).context("could not print")?;
        io::copy(&mut stderr, &mut io::stderr()).context("could not print")?;
        if let Some(code) = ended {
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        thread::sleep(POLL);
    }
}

/// The word in the shell's single quotes.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
