//! The checks made so far. Each prints its line at once.

pub mod connecting;
pub mod documents;
pub mod handing_out;
pub mod mcp;
pub mod tokens;

#[derive(Default)]
pub struct Checks {
    passed: usize,
    failed: usize,
}

impl Checks {
    /// What the next checks are about.
    pub fn about(&self, subject: &str) {
        println!("\n  {subject}");
    }

    /// Counts a check, and gives what it found.
    pub fn note<T>(&mut self, what: &str, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(found) => {
                self.passed += 1;
                println!("    ok      {what}");
                Some(found)
            }
            Err(why) => {
                self.failed += 1;
                println!("    FAILED  {what}: {why}");
                None
            }
        }
    }

    pub fn all_passed(&self) -> bool {
        self.failed == 0
    }

    pub fn summary(&self) -> String {
        let all = self.passed + self.failed;
        match self.failed {
            0 => format!("All {all} checks passed."),
            failed => format!("{failed} of {all} checks FAILED."),
        }
    }
}
