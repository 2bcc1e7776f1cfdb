"""The demonstration: the whole workflow on synthetic streets, from drawing them to a page that shows the result."""
