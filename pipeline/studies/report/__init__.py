"""What came out of runs, to read: a table of several, and one page of HTML about a run or a comparison."""
