//! What a program is linked with, and libraries with nothing in them, for a guest that has no room for those that it does not use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Stands in for all libraries of a program but some.
pub struct Hollow {
    /// The libraries that it has as they are.
    pub kept: Vec<PathBuf>,
    /// What the others are asked for by.
    pub names: Vec<String>,
    /// What is in each of the others: a shared library whose functions end the process.
    pub library: Vec<u8>,
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("could not run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The loader and the libraries that a program is linked with, each by the name that it is asked for by.
///
/// # Errors
/// `ldd` is missing, or does not understand the program.
pub fn linked(program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let text = output(Command::new("ldd").arg(program))?;
    // "NAME => PATH (ADDRESS)", or the loader's path alone; what the kernel brings along has none.
    let one = |line: &str| {
        let name = line.split_ascii_whitespace().next()?;
        let path = line.split_ascii_whitespace().find(|word| word.starts_with('/'))?;
        Some((name.to_owned(), PathBuf::from(path)))
    };
    Ok(text.lines().filter_map(one).collect())
}

/// The names of functions in `nm`'s words, with the versions that they have. `which`: `--defined-only` or `--undefined-only`.
fn functions(file: &Path, which: &str) -> Result<BTreeMap<String, Option<String>>> {
    let text = output(Command::new("nm").args(["-D", which]).arg(file))?;
    let names = text.lines().filter_map(|line| line.split_ascii_whitespace().last());
    Ok(names
        .map(|name| match name.split_once('@') {
            Some((name, version)) => (name.to_owned(), Some(version.trim_start_matches('@').to_owned())),
            None => (name.to_owned(), None),
        })
        .collect())
}

/// Makes the stand-in for what `program` is linked with itself, but the libraries of these names.
///
/// # Errors
/// The compiler or binutils are missing, or don't understand the program.
pub fn hollow(program: &Path, keep: &[&str]) -> Result<Hollow> {
    let needed = output(Command::new("objdump").arg("-p").arg(program))?;
    let needed = needed.lines().filter_map(|line| line.trim().strip_prefix("NEEDED")).map(str::trim);
    let names: Vec<_> = needed.filter(|name| !keep.contains(name)).map(str::to_owned).collect();
    // The loader is asked for by its path.
    let is_kept = |name: &str| name.starts_with('/') || keep.contains(&name);
    let kept: Vec<_> = linked(program)?.into_iter().filter(|(name, _)| is_kept(name)).map(|(_, path)| path).collect();
    let mut given = BTreeSet::new();
    for library in &kept {
        given.extend(functions(library, "--defined-only")?.into_keys());
    }

    let mut code = String::new();
    let mut versions = BTreeMap::<String, String>::new();
    // A name that is not here may be of the compiler's, which nobody has to have.
    let wanted = functions(program, "--undefined-only")?.into_iter().filter(|(name, _)| !given.contains(name));
    for (name, version) in wanted.filter(|(name, _)| !name.starts_with('_')) {
        writeln!(code, "void {name}(void) {{ __builtin_trap(); }}")?;
        if let Some(version) = version {
            write!(versions.entry(version).or_default(), "{name};")?;
        }
    }
    let map: String = versions.iter().map(|(version, names)| format!("{version} {{ {names} }};\n")).collect();

    let folder = tempfile::tempdir()?;
    let [source, script, library] = ["hollow.c", "hollow.map", "hollow.so"].map(|name| folder.path().join(name));
    fs::write(&source, code)?;
    fs::write(&script, map)?;
    // Some have names of functions that the compiler knows otherwise.
    let mut compiler = Command::new("gcc");
    compiler.args(["-w", "-shared", "-fPIC"]).arg(format!("-Wl,--version-script={}", script.display()));
    output(compiler.arg("-o").arg(&library).arg(&source))?;
    Ok(Hollow { kept, names, library: fs::read(&library)? })
}
