//! Orangery's program: see [`orangery::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    orangery::cli::main()
}
