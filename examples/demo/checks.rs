//! The checks made so far. Each prints its line at once.

pub mod connecting;
pub mod documents;
pub mod handing_out;
pub mod mcp;
pub mod sdk_client;
pub mod tokens;

#[derive(Default)]
pub struct Checks {
    passed: usize,
    failed: usize,
    left_out: Vec<&'static str>,
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

    /// Says what is not checked, and why; the end says it again.
    pub fn leave_out(&mut self, what: &'static str) {
        println!("\n  LEFT OUT: {what}");
        self.left_out.push(what);
    }

    pub fn all_passed(&self) -> bool {
        self.failed == 0
    }

    pub fn summary(&self) -> String {
        let all = self.passed + self.failed;
        let result = match self.failed {
            0 => format!("All {all} checks passed."),
            failed => format!("{failed} of {all} checks FAILED."),
        };
        self.left_out.iter().fold(result, |result, what| format!("{result}\nLEFT OUT: {what}"))
    }
}
