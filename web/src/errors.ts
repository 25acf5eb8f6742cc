/** Something that the user can put right: bad input, a damaged file, a package too big for a browser. */
export class RcdeployError extends Error {
  /** @param problem what is wrong, and where. @param fix what to do next. */
  constructor(
    readonly problem: string,
    readonly fix?: string,
  ) {
    super(fix ? `${problem}\n${fix}` : problem);
    this.name = "RcdeployError";
  }
}
