//! Runs the boot matrix: all rows, or those whose names contain one of the arguments. The table and a picture a row are
//! left in `artifacts/matrix`.

use anyhow::{Result, ensure};
use orangery_tests::matrix::{TABLE, run};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rows: Vec<_> =
        TABLE.iter().filter(|row| words.is_empty() || words.iter().any(|word| row.name.contains(word))).collect();
    ensure!(!rows.is_empty(), "no row's name contains any of {words:?}");
    let folder = orangery_tests::artifacts()?.join("matrix");
    let ran = run(rows.into_iter(), &folder);
    eprintln!("the table is {}", folder.join("matrix.md").display());
    ran
}
